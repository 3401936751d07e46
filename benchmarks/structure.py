"""Counts how the package hangs together: folders, chains of imports, hops from call to result.

    python benchmarks/structure.py          the counts
    python benchmarks/structure.py --hops   and each hop

A hop is a call from a function in one module to a function in another that leads on: to a further
module, at once or by way of functions of its own. Each pair counts once; calls that end where they
lead (checks, properties, conversions) are counted beside them. The network itself (``modeling/``
and the sizes it reads) is one module: what goes on inside it is SAM, not our plumbing, and a call
into it is a hop where it leads on inside. "To network" are the hops from which it is reached;
upward are those into a module that the caller does not import; depth is how many modules are
entered one inside the other. A comprehension is its function's. A tiny model on the CPU is what
runs.
"""

import argparse
import ast
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.config import vit_b
from samtrt.checkpoints.parameters import random_parameters
from samtrt.masks.predictor import SamPredictor
from samtrt.sam import sam_from_parameters
from samtrt.server.app import create_app

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "samtrt"
NETWORK = "samtrt.modeling"
SIZES = "samtrt.checkpoints.config"

Function = tuple[str, str]  # module, qualified name


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports_of(name: str) -> set[str]:
    """The package's modules that a module imports, at its top or inside a function."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(known[name].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & known.keys()) - {name}


def reach(name: str) -> set[str]:
    """The modules that a module imports, and those that these import."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for other in imports_of(waiting.pop()) - found:
            found.add(other)
            waiting.append(other)
    return found


def longest_chain() -> list[str]:
    """The longest path along imports."""
    known = modules()

    @cache
    def below(name: str) -> tuple[str, ...]:
        paths = (below(other) for other in imports_of(name))
        return (name, *max(paths, key=len, default=()))

    return list(max(map(below, known), key=len))


Call = tuple[Function, Function]  # caller, callee


@dataclass
class Journey:
    """How a call went through the package.

    Attributes:
        calls: of one function by another, each pair once.
        depth: modules that are entered one inside the other, at most.
    """

    calls: set[Call] = field(default_factory=set)
    depth: int = 0

    @property
    def crossing(self) -> set[Call]:
        """The calls from one module into another."""
        return {call for call in self.calls if _place(call[0]) != _place(call[1])}

    def hops(self) -> set[Call]:
        """The calls into another module that lead on."""
        own = {call for call in self.calls if call[0][0] == call[1][0]}
        leading = _before({caller for caller, _ in self.calls - own}, own)
        return {call for call in self.crossing if call[1] in leading}

    def to_network(self) -> set[Call]:
        """The hops from which the network is reached."""
        hops = self.hops()
        entered = {callee for _, callee in hops if _place(callee) == NETWORK}
        reaching = _before(entered, self.calls)
        return {call for call in hops if call[1] in reaching}

    def upward(self) -> set[Call]:
        """The hops against the imports: the caller does not know the callee's module, which has
        handed it a function or an object."""
        below = {name: reach(name) for name in modules()}
        return {
            (caller, callee)
            for caller, callee in self.hops()
            if NETWORK not in (_place(caller), _place(callee)) and callee[0] not in below[caller[0]]
        }


def _before(ends: set[Function], calls: set[Call]) -> set[Function]:
    """The functions, and those that call them, and so on."""
    found = set(ends)
    while more := {caller for caller, callee in calls if callee in found} - found:
        found |= more
    return found


def journey_of(call: Callable[[], Any]) -> Journey:
    """Follows a call."""
    found = Journey()

    def trace(frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        callee = _function(frame.f_code)
        if callee is None:
            return
        functions = _functions_above(frame)
        caller = next(functions, None)
        if caller is None or caller == callee:
            return
        found.calls.add((caller, callee))
        entered = map(_place, (callee, caller, *functions))
        found.depth = max(found.depth, len(list(groupby(entered))))

    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def _functions_above(frame: FrameType) -> Iterator[Function]:
    above = frame.f_back
    while above is not None:
        if (function := _function(above.f_code)) is not None:
            yield function
        above = above.f_back


@cache
def _function(code: CodeType) -> Function | None:
    path = Path(code.co_filename)
    if not path.is_relative_to(PACKAGE) or code.co_name == "<module>":
        return None
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return module, named(code.co_qualname)


def named(qualified: str) -> str:
    """A function's name; a comprehension's, which most have until Python 3.12, is that of the
    function around it."""
    return re.sub(r"(\.<locals>\.<(listcomp|setcomp|dictcomp|genexpr)>)+$", "", qualified)


def _place(function: Function) -> str:
    """Its module, or the network as a whole."""
    module, _ = function
    return NETWORK if module.startswith(NETWORK + ".") or module == SIZES else module


def journeys(folder: Path) -> dict[str, Callable[[], Any]]:
    """What is counted: name to call."""
    config = replace(
        vit_b(), embed_dim=32, depth=2, num_heads=2, global_attn_indexes=(1,), img_size=256,
        mlp_dim=64, window_size=7,
    )  # fmt: skip
    parameters = random_parameters(config)
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    picture = folder / "picture.png"
    Image.fromarray(image).save(picture)
    sam = sam_from_parameters(parameters, device="cpu", precision="fp32")
    _ = sam.computed_by  # made before anything is counted
    predictor = SamPredictor(sam)

    def to_mask() -> None:
        predictor.set_image(image)
        predictor.predict(np.array([[20, 20]]), np.array([1]))

    return {
        "parameters to checked engine": lambda: build_encoder(
            parameters, folder / "engine", [picture], BuildOptions("cpu", "fp32")
        ),
        "picture to mask": to_mask,
        "click to mask (POST /masks)": _click(create_app(sam, None), picture),
    }


def _click(app: Any, picture: Path) -> Callable[[], Any]:
    from fastapi.testclient import TestClient

    client = TestClient(app, base_url="http://127.0.0.1")
    headers = {"content-type": "image/png"}
    found = client.post("/embed", content=picture.read_bytes(), headers=headers).json()["id"]
    prompt = {"id": found, "point_coords": [[20, 20]], "point_labels": [1]}
    return lambda: client.post("/masks", json=prompt).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hops", action="store_true", help="print every hop")
    show = parser.parse_args().hops
    known = modules()
    folders = Counter(
        path.parent.relative_to(ROOT) for path in known.values() if path.name != "__init__.py"
    )
    folder, most = folders.most_common(1)[0]
    chain = longest_chain()
    print(f"modules                        {sum(folders.values())} in {len(folders)} folders")
    print(f"in the largest folder          {most} ({folder})")
    print(f"longest chain of imports       {len(chain)}")
    if show:
        print("  " + " → ".join(chain))
    print("                               hops  to network  upward  depth  other calls")
    with tempfile.TemporaryDirectory() as name:
        for what, call in journeys(Path(name)).items():
            journey = journey_of(call)
            hops, upward = journey.hops(), journey.upward()
            print(
                f"{what:30s}{len(hops):5d}{len(journey.to_network()):12d}{len(upward):8d}"
                f"{journey.depth:7d}{len(journey.crossing) - len(hops):13d}"
            )
            if show:
                for caller, callee in sorted(hops):
                    arrow = "↑" if (caller, callee) in upward else "→"
                    print(f"  {'.'.join(caller)} {arrow} {'.'.join(callee)}")


if __name__ == "__main__":
    main()
