"""How every command starts and ends: the configuration is composed and checked once, any error becomes one line."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.core.errors import UserError
from src.core.files import LOCK_FILE
from src.core.foreign import escape
from src.core.git_info import PROJECT_ROOT
from src.core.logging import LOGGER_NAME
from src.exp.settings import Settings, parse_settings
from src.exp.stage.messages import one_line, require_no_dashes
from src.exp.stage.multirun import is_multirun, run_job, run_jobs
from src.exp.stage.signals import Terminated, ended_by_signals, has_come, last_words, set_way_on

Run = Callable[[Settings], float | None]


def run_entry_point(run: Run, artefact: str | None = None) -> None:
    """Compose the configuration, run, and turn any error into one line and exit code 1.

    Set HYDRA_FULL_ERROR=1 for the stack trace.

    Args:
        artefact: what the command makes, by whose record a sweep knows its jobs; None: a command that only looks.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        _or_fail(_print_help, wants_trace=False)
        return
    _or_fail(lambda: require_no_dashes(sys.argv[1:]), wants_trace=False)
    # Hydra reads its options only in front of or behind all settings, people write `-m` between them, too.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    wants_trace = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and exiting itself
    entry = hydra.main(version_base="1.3", config_path=str(PROJECT_ROOT / "conf"), config_name="config")

    # Inside the job, too: Hydra would print the whole list of overrides above an error that leaves it.
    @functools.wraps(run)
    def job(config: DictConfig) -> float | None:
        if is_multirun():
            return run_job(lambda: _run(run, config), config, artefact, one_line, wants_trace=wants_trace)
        set_way_on(functools.partial(_way_on, Path(HydraConfig.get().runtime.output_dir), artefact))
        return _or_fail(lambda: _run(run, config), wants_trace=wants_trace)

    with ended_by_signals():
        _or_fail(lambda: run_jobs(lambda: entry(job)(), artefact), wants_trace=wants_trace)


def _print_help() -> None:
    from src.exp.stage.keys import help_text  # what no other command needs

    print(help_text(sys.argv[1:]))


def _run(run: Run, config: DictConfig) -> float | None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        return run(parse_settings(config))
    finally:
        remove_if_empty(folder)


def _way_on(folder: Path, artefact: str | None) -> str:
    """How to go on after a signal, for whom it finds in this run folder."""
    remove_if_empty(folder)
    if artefact is None or not folder.is_dir():
        return "nothing was written yet, start the same command again"
    return f"the same command with hydra.run.dir={escape.terminal(str(folder))} goes on from here"


def remove_if_empty(folder: Path) -> None:
    """Take away a run folder in which nothing was written: that of a refused command, or of one that only looks."""
    if folder.is_dir() and all(path.name == LOCK_FILE for path in folder.iterdir()):
        (folder / LOCK_FILE).unlink(missing_ok=True)
        folder.rmdir()


def _or_fail(action: Callable[[], float | None], *, wants_trace: bool) -> float | None:
    try:
        return action()
    except (KeyboardInterrupt, Terminated) as stop:
        _fail(*last_words(stop))
    except Exception as error:
        if has_come():
            _fail(*last_words(error))
        if wants_trace:
            raise
        _fail(one_line(error), 1)


def _fail(message: str, code: int) -> NoReturn:
    logger = logging.getLogger(LOGGER_NAME)
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            with suppress(UserError):  # of a full disk, which may be what is to be said
                handler.emit(logger.makeRecord(LOGGER_NAME, logging.ERROR, "", 0, message, (), None))
    print(f"error: {escape.terminal(message)}", file=sys.stderr)
    sys.exit(code)
