"""One tiny run of the whole pipeline through the real entry points, shared by the tests."""

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from harness import TINY_STUDENT, TINY_TEACHER, close_log, make_data_dir, places, run_here, run_processes

from src.exp import run_distill, run_eval_all, run_teacher

STAGES = {"teacher": run_teacher.run, "baseline": None, "distill": run_distill.run, "eval": run_eval_all.run}


@dataclass(frozen=True)
class Pipeline:
    """A finished pipeline.

    Attributes:
        folder: its run folder.
        printed: what each stage wrote to the standard output.
        after_training: files of `metrics/` as they were before `run_eval_all`.
    """

    data_dir: Path
    result_root: Path
    folder: Path
    printed: dict[str, str]
    after_training: dict[str, bytes]

    @property
    def overrides(self) -> list[str]:
        """Settings of every stage, but not its run folder."""
        return [*TINY_STUDENT, *TINY_TEACHER, *places(self.data_dir, self.result_root)]

    @property
    def teacher_outputs(self) -> Path:
        return self.data_dir / "teacher_outputs" / "sample"


@pytest.fixture(autouse=True)
def closed_log():
    yield
    close_log()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    return make_data_dir(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Pipeline:
    root = tmp_path_factory.mktemp("pipeline")
    data, results = make_data_dir(root / "data"), root / "result"
    folder = results / "result_20260101_000000"
    printed: dict[str, str] = {}
    after_training: dict[str, bytes] = {}
    for stage, run in STAGES.items():
        if stage == "eval":
            after_training = {path.name: path.read_bytes() for path in (folder / "metrics").iterdir()}
        overrides = [*TINY_STUDENT, *TINY_TEACHER, *places(data, results, folder)]
        if run is None:  # another process, with which tests compare what this one computes
            (outcome,) = run_processes(root / "printed", ("run_student_baseline", *overrides))
            printed[stage] = outcome.expect_success().out
        else:
            with redirect_stdout(StringIO()) as out:
                assert run_here(run, *overrides, drawn=True) == 0
            printed[stage] = out.getvalue()
    return Pipeline(data, results, folder, printed, after_training)
