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
    "exp": {"core", "student", "distill", "teacher", "exp"},
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
