"""The package's houses: imports run one way, in no circle, and folders stay small."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "samtrt"

# What the modules of each part may import beside their own part's; also inside functions.
EVERYONE = {"errors", "hints", "records", "files", "console", "torch_state"}
MODEL = EVERYONE | {"checkpoints", "pictures", "modeling"}
ENGINES = MODEL | {"kernels", "encoders", "decoders"}
MASKS = ENGINES | {"building", "sam", "masks"}
MAY_IMPORT = {
    "errors": set(),
    "hints": set(),
    "records": set(),
    "torch_state": set(),
    "files": {"errors"},
    "console": {"errors", "files"},
    "checkpoints": EVERYONE,
    "pictures": EVERYONE | {"checkpoints"},
    "scenes": set(),
    "modeling": EVERYONE | {"checkpoints", "pictures"},  # knows no back end
    "kernels": {"errors", "files", "hints"},
    "encoders": MODEL | {"kernels"},
    "decoders": MODEL | {"kernels", "encoders"},  # they take an embedded picture
    "building": ENGINES,
    "sam": ENGINES,
    "masks": ENGINES | {"sam"},
    "segment_anything": MASKS,  # Meta's paths
    "formats": MASKS,
    "run_with": {"errors", "console", "segment_anything"},
    "jobs": MASKS | {"formats"},
    "server": MASKS | {"formats"},
    "reports": MASKS | {"formats", "jobs", "server"},
    "models": ENGINES | {"building"},
    "cli": MASKS | {"formats", "jobs", "server", "reports", "scenes", "models"},
}
# Entry points for users: what they import, nobody gets by importing the package.
DOORS = {
    "samtrt": {"encoders", "masks", "run_with", "sam"},
    "samtrt.__main__": {"cli"},
    "samtrt.server.__main__": {"cli", "console"},
}
MOST_MODULES = 12  # of a folder, __init__ and __main__ aside


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def part_of(module: str) -> str:
    return module.split(".")[1]


def imported(path: Path, at_once: bool = False) -> set[str]:
    """The package's modules that a file imports; ``at_once``: when it is imported itself."""
    tree = ast.parse(path.read_text("utf-8"))
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        )
        if not (at_once and deferred):
            waiting.extend(ast.iter_child_nodes(node))
    return {name for name in found if name.split(".")[0] == "samtrt"}


def test_the_table_has_every_part_and_no_circle() -> None:
    parts = {part_of(name) for name in MODULES if name not in ("samtrt", "samtrt.__main__")}
    assert parts == set(MAY_IMPORT)
    waiting = dict(MAY_IMPORT)
    while waiting:
        ready = [part for part, others in waiting.items() if not others & (set(waiting) - {part})]
        assert ready, f"a circle among {sorted(waiting)}"
        for part in ready:
            del waiting[part]


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Inside functions too: such an import only puts the circle off."""
    waiting = {name: imported(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
    while ready := [name for name, others in waiting.items() if not others & waiting.keys()]:
        for name in ready:
            del waiting[name]
    assert not waiting, f"a circle among {sorted(waiting)}, or below them"


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    allowed = DOORS.get(module) or MAY_IMPORT[part_of(module)] | {part_of(module)}
    wrong = {
        name for name in imported(MODULES[module]) - {"samtrt"} if part_of(name) not in allowed
    }
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}"
    if module not in DOORS:
        assert "samtrt" not in imported(MODULES[module]) or part_of(module) in ("server", "cli")


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: imported(path, at_once=True) & set(MODULES) for name, path in MODULES.items()}
    finished: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name) :], name))
        if name not in finished:
            for other in graph[name] - {name}:
                visit(other, (*way, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def test_folders_are_small() -> None:
    folders = {path.parent for path in MODULES.values()}
    for folder in folders:
        own = [path for path in folder.glob("*.py") if not path.stem.startswith("__")]
        assert len(own) <= MOST_MODULES, f"{folder.name} has {len(own)} modules"


def test_every_folder_says_what_it_is_for() -> None:
    for name, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), f"{name} has no docstring"


def test_importing_the_package_brings_no_heavy_library() -> None:
    script = (
        "import sys, samtrt; "
        "print(*{'torch', 'tensorrt', 'tensorrt_rtx', 'triton', 'onnxruntime'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_public_names_are_there() -> None:
    import samtrt

    assert all(getattr(samtrt, name) is not None for name in samtrt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = samtrt.nothing


def programs_in_strings() -> list[tuple[str, str, str]]:
    """(file, module, name) of what programs that stand in strings import from the package."""
    found = []
    for folder in ("samtrt", "tests", "benchmarks", "training", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                    continue
                lines = (line for text in node.value.split(";") for line in text.splitlines())
                for line in map(str.strip, lines):
                    if line.startswith("from samtrt") and " import " in line:
                        module, _, names = line.removeprefix("from ").partition(" import ")
                        for name in names.split(","):
                            found.append((path.name, module, name.split(" as ")[0].strip()))
    return found


def test_programs_in_strings_import_what_there_is() -> None:
    """No linter sees them, and some run on a GPU only."""
    programs = programs_in_strings()
    assert len(programs) >= 5
    for file, module, name in programs:
        assert hasattr(import_module(module), name) or f"{module}.{name}" in MODULES, (file, module)
