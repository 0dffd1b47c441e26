"""One tiny run of the whole pipeline through the real entry points, shared by the tests."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import TINY_STUDENT, TINY_TEACHER, Outcome, close_log, make_data_dir, places, run_process

STAGE_MODULES = {
    "teacher": "run_teacher",
    "baseline": "run_student_baseline",
    "distill": "run_distill",
    "eval": "run_eval_all",
}


@dataclass(frozen=True)
class Pipeline:
    """A finished pipeline.

    Attributes:
        folder: its run folder.
        after_training: files of `metrics/` as they were before `run_eval_all`.
    """

    data_dir: Path
    result_root: Path
    folder: Path
    outcomes: dict[str, Outcome]
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
    outcomes: dict[str, Outcome] = {}
    after_training: dict[str, bytes] = {}
    for stage, module in STAGE_MODULES.items():
        if stage == "eval":
            after_training = {path.name: path.read_bytes() for path in (folder / "metrics").iterdir()}
        outcomes[stage] = run_process(module, *TINY_STUDENT, *TINY_TEACHER, *places(data, results, folder))
        assert outcomes[stage].code == 0, outcomes[stage].err
    return Pipeline(data, results, folder, outcomes, after_training)
