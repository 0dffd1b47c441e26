"""The notebook's cells run in their order, and end with a recommendation.

Not by nbclient: a kernel would be two more packages, and processes that cannot be shortened. The commands run in this
process, through the same entry points.
"""

import importlib
import json
import re
import subprocess
import sys

import pytest
from harness import ROOT, run_here

NOTEBOOK = json.loads((ROOT / "docs" / "first_hour.ipynb").read_text(encoding="utf-8"))
CELLS = {
    kind: ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == kind] for kind in ("code", "markdown")
}


@pytest.fixture
def commands(monkeypatch, tmp_path) -> list[str]:
    """Modules that were run, in this process."""
    ran: list[str] = []
    original = subprocess.run

    def run(words, **options):
        if words[1] != "-m":  # git's
            return original(words, **options)
        assert options == {"check": True, "cwd": ROOT}
        ran.append(words[2])
        assert run_here(importlib.import_module(words[2]).run, *words[3:]) == 0
        return None

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.path", list(sys.path))  # to which the first cell adds
    monkeypatch.chdir(ROOT / "docs")
    return ran


def test_the_cells_run_in_order_and_end_with_a_recommendation(commands, tmp_path, capsys, monkeypatch) -> None:
    names: dict[str, object] = {}
    for cell in CELLS["code"]:
        capsys.readouterr()
        exec(compile(cell, "docs/first_hour.ipynb", "exec"), names)
    assert commands == [f"src.exp.run_{name}" for name in ("student_baseline", "teacher", "distill", "eval_all")]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(re.fullmatch(r" *-?\d+\.\d{3}  +\d+  .+", line) for line in lines)
    assert {"12", "The Silver Harbor"}.isdisjoint(word for line in lines for word in line.split("  "))
    assert len(list(tmp_path.glob("first_hour_*/run/report.html"))) == 1


def test_it_is_kept_without_outputs_and_points_at_what_is_there() -> None:
    assert not [cell for cell in NOTEBOOK["cells"] if cell.get("outputs") or cell.get("execution_count")]
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(CELLS["markdown"]))
    assert links and all((ROOT / "docs" / link).is_file() for link in links)
