"""Imports point one way, foreign code stays in its corner, and Hydra's `cfg` ends where it should."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in (ROOT / "src").rglob("*.py") if "third_party" not in path.parts)
# What each layer may import, itself included.
ALLOWED = {
    "core": {"core"},
    "student": {"core", "student"},
    "distill": {"core", "student", "distill"},
    "teacher": {"core", "student", "teacher"},
    "serving": {"core", "student", "serving"},
    "exp": {"core", "student", "distill", "teacher", "serving", "exp"},
}
# Top-level modules of the submodules, in src/third_party.
ILORA_NAMES = {"model", "data", "recommender", "optims", "ilora"}
DLLM2REC_NAMES = {"main", "utility", "dllm2rec"}
SHARED_NAMES = {"SASRecModules_ori", "third_party"}  # both submodules have a file of that name
CONFIG_FILES = {
    "core/paths.py",
    "core/settings.py",
    "distill/selection_policy.py",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "src").as_posix()


def imported(path: Path) -> set[str]:
    """Full names of the modules (and of the names taken from them) that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: imports are absolute here"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and _is_dynamic(node.func):
            names |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return names


def _is_dynamic(function: ast.expr) -> bool:
    """`import_module(...)` or `__import__(...)`."""
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def test_the_scan_sees_every_layer():
    assert {path.relative_to(ROOT / "src").parts[0] for path in FILES} == {*ALLOWED, "__init__.py"}


def test_the_scan_finds_imports(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("import a.b\nfrom c import d\ndef f():\n    import e\n    import_module('g')\n")
    assert imported(file) == {"a.b", "c", "c.d", "e", "g"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_layers_point_one_way(path):
    layer = path.relative_to(ROOT / "src").parts[0]
    used = {name.split(".")[1] for name in imported(path) if name.startswith("src.")}
    if layer in ALLOWED:
        assert used <= ALLOWED[layer]
    else:
        assert used == set()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_foreign_code_stays_in_its_corner(path):
    """Nothing but the teacher imports the iLoRA submodule, nothing but the wrapper that of DLLM2Rec."""
    name, used = name_of(path), imported(path)
    top = {module.split(".")[0] for module in used}
    top |= {module.split(".")[2] for module in used if module.startswith("src.third_party.")}
    teacher, wrapper = name.startswith("teacher/"), name == "distill/dllm2rec_wrapper.py"
    forbidden = set() if teacher else ILORA_NAMES
    forbidden |= set() if wrapper else DLLM2REC_NAMES
    forbidden |= set() if teacher or wrapper else SHARED_NAMES
    assert top & forbidden == set()
    assert teacher or wrapper or not any(module.startswith("src.third_party") for module in used)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_hydra_ends_where_the_design_says(path):
    name = name_of(path)
    tops = {module.split(".")[0] for module in imported(path)}
    if tops & {"hydra", "omegaconf"}:
        assert name.startswith("exp/") or name in CONFIG_FILES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_module_shadows_the_standard_library(path):
    """`src/core/logging.py` must be imported by its full name only; a bare `core.logging` would mean a path trick."""
    assert not {module for module in imported(path) if module.split(".")[0] in ALLOWED}


def test_there_is_no_python_in_cmd():
    assert list((ROOT / "cmd").rglob("*.py")) == []  # a package named cmd would break pdb


# --- how the folders hang together --------------------------------------------------------------------------

FOLDERS = sorted({path.parent for path in FILES})
MOST_MODULES = 12  # of a folder, besides its `__init__`
MOST_LEVELS = 6
# Wings of a layer: each may import itself and those before it.
WINGS = {
    "core": [{"foreign"}, {"datasets"}, {"sequences"}, {"tracking"}],
    "teacher": [{"prompt"}, {"llm"}, {"tiny"}, {"scoring"}, {"adapter"}],
    "exp": [{"search"}, {"stage"}, {"compare"}, {"report"}, {"study"}],
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def module_imports() -> dict[str, set[str]]:
    """The modules of `src` that each module imports."""
    names = {module_of(path) for path in FILES}
    return {module_of(path): (imported(path) & names) - {module_of(path)} for path in FILES}


def folder_imports() -> dict[str, set[str]]:
    """The folders that each folder imports, apart from those it lies in or that lie in it.

    A layer's own modules are below its wings (`exp/settings.py`) and above them (`exp/run_study.py`).
    """
    found: dict[str, set[str]] = {}
    for name, used in module_imports().items():
        for other in used:
            one, two = name.rpartition(".")[0], other.rpartition(".")[0]
            if one != two and not one.startswith(f"{two}.") and not two.startswith(f"{one}."):
                found.setdefault(one, set()).add(two)
    return found


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest path through a graph.

    Raises:
        AssertionError: a node leads back to itself.
    """
    chains: dict[str, list[str]] = {}

    def chain(node: str, above: tuple[str, ...]) -> list[str]:
        assert node not in above, f"a circle: {' -> '.join((*above, node))}"
        if node not in chains:
            longest = max((chain(other, (*above, node)) for other in sorted(graph.get(node, ()))), key=len, default=[])
            chains[node] = [node, *longest]
        return chains[node]

    return max((chain(node, ()) for node in sorted(graph)), key=len, default=[])


def test_the_longest_chain_is_found_and_circles_are_refused():
    assert longest_chain({"a": {"b", "c"}, "b": {"c"}, "d": {"c"}}) == ["a", "b", "c"]
    with pytest.raises(AssertionError, match="a circle: a -> b -> a"):
        longest_chain({"a": {"b"}, "b": {"a"}})


def test_no_module_imports_itself_by_way_of_others():
    assert longest_chain(module_imports())


def test_the_folders_are_a_few_levels_that_point_one_way():
    chain = longest_chain(folder_imports())
    assert 3 <= len(chain) <= MOST_LEVELS, " -> ".join(chain)


@pytest.mark.parametrize("layer", WINGS)
def test_the_wings_of_a_layer_point_one_way(layer):
    order = WINGS[layer]
    folders = {folder.name for folder in FOLDERS if folder.parent == ROOT / "src" / layer}
    assert set().union(*order) == folders
    below: set[str] = set()
    for wings in order:
        below |= wings
        for wing in wings:
            used = {
                name.split(".")[2]
                for name in folder_imports().get(f"src.{layer}.{wing}", ())
                if name.startswith(f"src.{layer}.")
            }
            assert used <= below, f"{layer}/{wing} imports {', '.join(sorted(used - below))}"


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_is_small_and_says_what_it_is(folder):
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES
    first = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert first, f"{name_of(folder)}/__init__.py: a sentence that says what is in the folder"
