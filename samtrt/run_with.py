"""Runs a program written for ``segment_anything`` on this package, without an edit.

    python -m samtrt.run_with script.py ARGS…
    python -m samtrt.run_with -m module ARGS…

``install()`` puts the tree of ``samtrt.segment_anything`` into ``sys.modules`` as
``segment_anything`` and is what a program of one's own calls first. With ``--as NAME`` before the
script (or ``install(NAME)``) it stands for ``mobile_sam`` or ``segment_anything_hq`` as well: their
parts that are the same as Meta's, the others are refused where they are imported. Processes that
the program spawns get the same.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from pkgutil import walk_packages
from types import CodeType, ModuleType
from typing import Any, ClassVar

from samtrt.console import run_script
from samtrt.errors import InputError, SamtrtError

OURS = "samtrt.segment_anything"
_USAGE = "python -m samtrt.run_with [--as NAME] (script.py | -m module) ARGS…"
_STARTED = "SAMTRT_RUN_WITH"  # what spawned processes are told

# What the forks of the package have under Meta's names, or under their own, and is not the same.
_HQ_BUILD = (
    *("build_sam", "build_sam_vit_b", "build_sam_vit_h", "build_sam_vit_l", "build_sam_vit_t"),
    "sam_model_registry",
)
_DIFFERENT: dict[str, dict[str, tuple[str, ...]]] = {
    "segment_anything": {},
    "mobile_sam": {
        "": ("build_sam_vit_t",),
        "build_sam": ("build_sam_vit_t",),
        "modeling": ("TinyViT",),
    },
    "segment_anything_hq": {
        "": (*_HQ_BUILD, "SamPredictor", "SamAutomaticMaskGenerator"),
        "automatic_mask_generator": ("SamAutomaticMaskGenerator", "SamPredictor", "Sam"),
        "build_sam": (*_HQ_BUILD, "Sam"),
        "modeling": ("Sam", "ImageEncoderViT", "MaskDecoderHQ", "TinyViT"),
        "modeling.image_encoder": ("ImageEncoderViT",),
        "modeling.sam": ("Sam", "ImageEncoderViT"),
        "predictor": ("SamPredictor", "Sam"),
        "utils.onnx": ("SamOnnxModel", "Sam"),
    },
}


def install(name: str = "segment_anything", force: bool = False) -> ModuleType:
    """Puts the tree into ``sys.modules``, so that ``import segment_anything`` finds it.

    Args:
        name: ``"segment_anything"``, ``"mobile_sam"`` or ``"segment_anything_hq"``.
        force: also where another package of that name has been imported; what holds objects of it
            keeps them.

    Returns:
        The package, as it is imported from now on.

    Raises:
        InputError: another name.
        SamtrtError: another package of that name has been imported, and ``force`` is False.
    """
    _check(name)
    found = sys.modules.get(name)
    if found is not None and not is_ours(found) and not force:
        raise SamtrtError(
            f"{name} has been imported already, from {getattr(found, '__file__', None)}; call "
            "samtrt.install before anything imports it, or with force=True"
        )
    package = import_module(OURS)
    names = [""] + [
        part.name.removeprefix(f"{OURS}.") for part in walk_packages(package.__path__, f"{OURS}.")
    ]
    for other in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        del sys.modules[other]
    for part in names:
        module = import_module(f"{OURS}.{part}" if part else OURS)
        if name != "segment_anything":
            module = _without(name, part, module)
        sys.modules[f"{name}.{part}" if part else name] = module
        parent, _, child = part.rpartition(".")
        if name != "segment_anything" and part:
            setattr(sys.modules[f"{name}.{parent}" if parent else name], child, module)
    if name != "segment_anything" and name not in _Rest.names:
        _Rest.names.append(name)
        sys.meta_path.insert(0, _Rest(name))
    return sys.modules[name]


def _check(name: str) -> None:
    if name not in _DIFFERENT:
        raise InputError(
            f"{name!r} is not one of the packages that samtrt stands for; expected one of "
            f"{', '.join(_DIFFERENT)}"
        )


def is_ours(module: ModuleType) -> bool:
    """Whether a module that is imported as ``segment_anything`` is of this package."""
    return getattr(module, "__samtrt__", module.__name__).startswith(OURS)


def _without(name: str, part: str, module: ModuleType) -> ModuleType:
    """A module of ours as that part of a fork, without what is not the same there."""
    different = _DIFFERENT[name].get(part, ())
    view = ModuleType(f"{name}.{part}" if part else name, module.__doc__)
    for key, value in vars(module).items():
        if not key.startswith("__") and key not in different and not isinstance(value, ModuleType):
            setattr(view, key, value)
    vars(view)["__samtrt__"] = OURS
    if hasattr(module, "__path__"):
        view.__path__ = []
    if name == "mobile_sam" and "sam_model_registry" in vars(view):
        vars(view)["sam_model_registry"] = _Registry(vars(view)["sam_model_registry"])

    def missing(key: str) -> Any:
        if key in different:
            raise ImportError(_refusal(f"{view.__name__}.{key}", name), name=view.__name__)
        raise AttributeError(f"module {view.__name__!r} has no attribute {key!r}")

    view.__getattr__ = missing  # type: ignore[method-assign]
    return view


def _refusal(what: str, name: str) -> str:
    return (
        f"{what} is not the same as Meta's, and samtrt does not stand for it; run this program "
        f"with {name} itself"
    )


class _Registry(dict[str, Any]):
    """Models by their names; a fork's own are refused in words."""

    def __missing__(self, key: str) -> Any:
        raise SamtrtError(_refusal(f"the model {key!r}", "mobile_sam"))


class _Rest(MetaPathFinder):
    """Refuses the modules of a fork that Meta's package has not."""

    names: ClassVar[list[str]] = []

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.startswith(f"{self.name}."):
            raise ModuleNotFoundError(_refusal(fullname, self.name), name=fullname)


def main(argv: Sequence[str]) -> ModuleType:
    """Installs, and prepares the module ``__main__`` that the program will run in.

    Args:
        argv: what stands after ``run_with``.

    Raises:
        InputError: there is no such script or module, or none is named.
        SamtrtError: see ``install``.
    """
    waiting, names = list(argv), ["segment_anything"]
    while waiting[:1] == ["--as"]:
        names += waiting[1:2] or [""]
        _check(names[-1])
        del waiting[:2]
    is_module = waiting[:1] == ["-m"]
    target, *arguments = waiting[is_module:] or [""]
    if not target or target.startswith("-"):
        raise InputError(f"no program is named; expected {_USAGE}")
    if is_module:
        sys.path[0] = str(Path.cwd())
    elif not Path(target).is_file():
        raise InputError(f"no script at {target}; expected {_USAGE}")
    else:
        sys.path[0] = str(Path(target).resolve().parent)
    sys.argv = [target, *arguments]
    program = target if is_module else str(Path(target).resolve())
    os.environ[_STARTED] = json.dumps([names, is_module, program])
    for name in dict.fromkeys(names):
        install(name)
    return _prepared("__main__", is_module, target)


def _prepared(run_name: str, is_module: bool, target: str) -> ModuleType:
    """The program's module; its code waits in ``__code__``."""
    program = ModuleType(run_name)
    code: CodeType | None
    if is_module:
        spec = _spec_of(target)
        code = spec.loader.get_code(spec.name)
        program.__file__, program.__package__ = spec.origin, spec.parent
    else:
        code = compile(Path(target).read_bytes(), target, "exec")
        program.__file__ = target
    # Spawned processes import the module of that name again: this one, which runs the program.
    program.__spec__ = ModuleSpec("samtrt.run_with", None, origin=__file__)
    program.__code__ = code  # type: ignore[attr-defined]
    return program


def _spec_of(target: str) -> Any:
    try:
        spec = importlib.util.find_spec(target)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{target}.__main__")
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.loader is None or not hasattr(spec.loader, "get_code"):
        raise InputError(f"no module {target} that can be run; expected {_USAGE}")
    sys.argv[0] = spec.origin or target
    return spec


def _run(program: ModuleType) -> dict[str, Any]:
    """Runs the program's code in its module; returns what it has defined."""
    code = vars(program).pop("__code__")
    exec(code, vars(program))
    return vars(program)


def _start() -> None:
    prepared: list[ModuleType] = []
    if status := run_script(lambda: prepared.append(main(sys.argv[1:]))):
        sys.exit(status)
    sys.modules["__main__"] = prepared[0]
    _run(prepared[0])


def _again() -> dict[str, Any]:
    """The program in a process that it has spawned, as multiprocessing imports it there."""
    names, is_module, target = json.loads(os.environ[_STARTED])
    for name in dict.fromkeys(names):
        install(name)
    return _run(_prepared("__mp_main__", is_module, target))


if __name__ == "__main__":
    _start()
elif __name__ == "__mp_main__":
    globals().update(_again())
