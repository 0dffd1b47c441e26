"""Finding what earlier stages made."""

import logging
from pathlib import Path

from src.core.errors import UserError
from src.core.files import read_json
from src.core.paths import RunFolder, project_path, result_root
from src.exp.stage import Stage, is_multirun


def find_run(
    stage: str, here: RunFolder, result_root: Path, fingerprint: str, key: str, logger: logging.Logger
) -> RunFolder | None:
    """The run folder whose finished `stage` to use: this one, else the newest of the same dataset.

    Raises:
        UserError: under multirun, where a guess could mix seeds: `key` has to be given.
    """
    if _fits(here, stage, fingerprint):
        return here
    if is_multirun():
        raise UserError(f"{key}=null: must be given under multirun, because guessing a run could mix seeds")
    runs = sorted((p for p in result_root.glob("result_*") if p.is_dir()), key=lambda p: p.name, reverse=True)
    for run in map(RunFolder, runs):
        if _fits(run, stage, fingerprint):
            logger.info("%s not given: taking %s of the newest finished run, %s", key, stage, run.root)
            return run
    return None


def baseline_folder(stage: Stage, key: str, given: str | None) -> Path:
    """Checkpoint folder of a baseline: the given one, else that of the run that `find_run` finds.

    Raises:
        UserError: none was given, and there is no finished one of the stage's dataset.
    """
    if given is not None:
        return project_path(given)
    run = find_run("baseline", stage.folder, result_root(stage.cfg), stage.dataset.fingerprint, key, stage.logger)
    if run is None:
        raise UserError(
            f"{key}=null: no finished baseline of dataset {stage.dataset.name} found; run "
            "src.exp.run_student_baseline first or set the key to its folder"
        )
    return run.model_dir("baseline")


def _fits(run: RunFolder, stage: str, fingerprint: str) -> bool:
    """Whether the run completed that stage on that dataset."""
    if not run.is_finished(stage):
        return False
    try:
        return read_json(run.eval_file(stage)).get("dataset_fingerprint") == fingerprint
    except UserError:
        return False  # a damaged old run must not stop a new one
