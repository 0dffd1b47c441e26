"""Relative paths of a study's jobs start where the study was called."""

import os

from harness import CONF, ROOT, TINY_STUDENT, make_data_dir, record, run_processes
from omegaconf import OmegaConf

VARIANTS = list(OmegaConf.load(CONF / "study" / "controls.yaml").variants)


def test_relative_paths_of_a_job_start_where_the_study_was_called(tmp_path) -> None:
    data = os.path.relpath(make_data_dir(tmp_path / "data"), ROOT)
    alone = [*(f"~study.variants.{name}" for name in VARIANTS), "study.leader=null"]
    places = [f"paths.data_dir={data}", f"paths.result_root={tmp_path}", f"hydra.run.dir={tmp_path / 'study'}"]
    call = ("run_study", *TINY_STUDENT, *alone, "study.seeds=[1]", *places)
    (outcome,) = run_processes(tmp_path / "printed", call)
    outcome.expect_success()
    assert record(tmp_path / "study" / "runs" / "baseline" / "seed_1", "baseline")["completed"]
