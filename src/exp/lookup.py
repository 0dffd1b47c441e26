"""Finding what earlier stages made."""

import logging
from pathlib import Path

from src.core.errors import UserError
from src.core.files import read_json
from src.core.paths import RunFolder
from src.exp.stage import is_multirun


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


def _fits(run: RunFolder, stage: str, fingerprint: str) -> bool:
    """Whether the run completed that stage on that dataset."""
    if not run.is_finished(stage):
        return False
    try:
        return read_json(run.eval_file(stage)).get("dataset_fingerprint") == fingerprint
    except UserError:
        return False  # a damaged old run must not stop a new one
