"""The layout as a law: imports go one way, rooms have no grab-bags, files stay readable."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_rat"
FILES = sorted(PACKAGE.rglob("*.py"))
# Room (a folder of hf_rat, or a file at its top) -> the other rooms it may import from.
ALLOWED = {
    "passes": set(),
    "regularizers": {"passes"},
    "engine": {"passes", "regularizers"},
    "trainer": {"passes", "regularizers", "engine"},
    "models": set(),
    "data": set(),
    "finetuning": {"passes", "regularizers", "engine", "trainer", "models", "data"},
    "analysis": {"passes", "regularizers", "engine", "trainer", "models", "data", "finetuning"},
    "experiments": {"finetuning", "data", "engine", "regularizers"},
    "report": {"experiments", "analysis", "finetuning", "trainer", "data"},
    "cli": {"", "finetuning", "experiments", "data", "models", "engine", "trainer", "analysis", "report"},
    "public": {"passes", "regularizers", "engine", "trainer", "models"},
    "": {"public"},  # hf_rat/__init__.py
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


# These files travel with a checkpoint to where hf-rat is not installed: they name their siblings only.
TRAVELLING = "models"


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Our modules that a file imports; with ``everywhere`` also those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            where = f"{path.name}: line {node.lineno}"
            source = str(node.module)
            if room(module_name(path)) == TRAVELLING:
                ours = node.level > 0 or source.split(".")[0] == PACKAGE.name
                # Transformers finds the files to copy by the text `from .name import`.
                assert not ours or (node.level == 1 and node.module and "." not in node.module), (
                    f"{where} must be `from .name import`: its file travels with a checkpoint, beside its siblings"
                )
                source = f"{PACKAGE.name}.{TRAVELLING}.{source}" if ours else source
            else:
                assert node.level == 0, f"{where} is a relative import; write the full name"
            # `from hf_rat.data import tasks` names a module, `from hf_rat.data.tasks import Task` something in one.
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else source for name in names}
    return {name for name in found if name.split(".")[0] == PACKAGE.name}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    own = room(module)
    assert own in ALLOWED, f"{module} opens a room that has no place in the layout yet"
    for imported in imports(MODULES[module]):
        assert imported in MODULES, f"{module} imports {imported}, which does not exist"
        assert room(imported) == own or room(imported) in ALLOWED[own], (
            f"{module} imports {imported}, against the order"
        )


def test_no_import_circles():
    graph = {module: imports(path, everywhere=False) - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("where", "known"),
    [
        ("passes", {"torch", "numpy", PACKAGE.name}),
        ("regularizers", {"torch", "numpy", PACKAGE.name}),
        ("models", {"torch", "transformers"}),
    ],
)
def test_a_room_knows_few_packages(where, known):
    standard = __import__("sys").stdlib_module_names
    for path in (path for module, path in MODULES.items() if room(module) == where):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            foreign = {name.split(".")[0] for name in names} - standard - known
            assert not foreign, f"{path.name} imports {', '.join(foreign)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_holds_one_concept(path):
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}, (
        f"{path} is a grab-bag by its name"
    )
    lines = len(path.read_text(encoding="utf-8").splitlines())
    # recipes.py is data: one short function with a long card for each published method.
    assert lines <= 300 or path.name == "recipes.py", f"{path} has {lines} lines, more than 300"


@pytest.mark.parametrize("name", ["run_glue.py", "run_textcls.py"])
def test_scripts_are_thin(name):
    script = PACKAGE.parent / name
    assert {room(name) for name in imports(script)} == {"cli"}
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
