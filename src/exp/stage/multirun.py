"""The jobs of a sweep: an error in one does not end the others, and a finished one is not done twice.

A job is an ordinary run folder: its record (`src.core.artefacts`) says whether it is complete, how it failed and what
it returned, `.hydra/<stage>/overrides.yaml` what was asked of it.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from src.core.artefacts import Record, State
from src.core.errors import UserError
from src.core.files import write_text
from src.core.foreign.escape import terminal
from src.core.logging import begin_lines_with, terminal_logger
from src.core.paths import RunFolder
from src.exp.stage.signals import set_way_on
from src.exp.stage.snapshot import saved_overrides

TRAININGS = ("teacher", "baseline", "distill", "dllm2rec_upstream", "eval")  # what a sweep's jobs may make


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """A job of a sweep.

    Attributes:
        artefact: what it makes; a folder may hold one job of each.
        overrides: by key, as they were typed.
        error: how it failed or that it was cut off; None where it is complete.
    """

    folder: RunFolder
    artefact: str
    overrides: dict[str, str]
    record: Record
    error: str | None


class JobFailed(UserError):
    """A job's error as one line. Not the error itself, which might not survive the way back from another process."""


def is_multirun() -> bool:
    """Whether this job is one of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def load_jobs(sweep_dir: Path, artefacts: tuple[str, ...] = TRAININGS) -> list[SweepJob]:
    """The jobs below a sweep folder, by job number."""
    jobs = []
    for artefact in artefacts:
        for file in sweep_dir.glob(f"*/records/{artefact}.json"):
            folder = RunFolder(file.parents[1])
            status = folder.artefact(artefact).status()
            if status.record is not None:
                complete = status.state is State.COMPLETE and status.record.error is None
                jobs.append(
                    SweepJob(
                        folder=folder,
                        artefact=artefact,
                        overrides=_overrides(folder, artefact),
                        record=status.record,
                        error=None if complete else status.record.error or status.why or "it is still running",
                    )
                )
    return sorted(jobs, key=lambda job: (len(job.folder.root.name), job.folder.root.name, job.artefact))


def _overrides(folder: RunFolder, stage: str) -> dict[str, str]:
    split = [word.partition("=") for word in saved_overrides(folder, stage)]
    return {key: value for key, _, value in split}


def varying_keys(jobs: list[SweepJob]) -> list[str]:
    """Keys of the overrides that are not the same in all jobs, in the order they were typed."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def run_job(
    job: Callable[[], float | None],
    config: DictConfig,
    artefact: str | None,
    explain: Callable[[BaseException], str],
    *,
    wants_trace: bool,
) -> float | None:
    """Run one job of a sweep.

    Args:
        artefact: what it makes, whose record will say how it failed.
        explain: turns an error into one line.

    Raises:
        JobFailed: the error, once it is in the record and in the log.
    """
    begin_lines_with(f"job {HydraConfig.get().job.num}: ")
    try:
        return job()
    except Exception as error:
        message = explain(error)
        terminal_logger().error("failed: %s", message, exc_info=wants_trace)
        if artefact is not None:
            with suppress(UserError):  # of a full disk: the first error says more
                _note_failure(RunFolder(Path(HydraConfig.get().runtime.output_dir)), artefact, config, message)
        raise JobFailed(message) from None
    finally:
        begin_lines_with("")


def _note_failure(folder: RunFolder, name: str, config: DictConfig, message: str) -> None:
    """Keep a job's error in its record, also where it failed before its stage had begun."""
    artefact = folder.artefact(name)
    if artefact.status().record is None:
        artefact.begin({})
        content: dict[str, Any] = {"config.yaml": config, "overrides.yaml": HydraConfig.get().overrides.task}
        for file, values in content.items():
            write_text(folder.snapshot_dir(name) / file, OmegaConf.to_yaml(values))
    artefact.note_error(message)


class SweepWatch(Callback):
    """Where the sweep of this process is; only Hydra's configuration knows."""

    folder: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepWatch.folder = Path(config.hydra.sweep.dir).absolute()
        set_way_on(lambda: f"the same command with {_repeats()}")
        _draw_other_trials(config.hydra.sweeper)


def _draw_other_trials(sweeper: DictConfig) -> None:
    """Let the sampler of a kept study go on: from its seed it would draw the trials of the earlier starts again."""
    if sweeper.get("study_name") is None or sweeper.sampler.get("seed") is None:
        return
    from src.exp.search.study_file import kept_trials, study_file  # Optuna, which only a search needs

    known = 0
    with suppress(UserError):  # which Hydra would show as a warning; the storage says it once more
        known = len(kept_trials(study_file(sweeper.storage.folder, sweeper.study_name)))
    sweeper.sampler.seed += known
    if known:
        terminal_logger().info("study %s goes on after %d trials", sweeper.study_name, known)


def run_jobs(entry: Callable[[], None], artefact: str | None) -> None:
    """Let Hydra run one job or a sweep; a sweep runs to its end.

    Raises:
        UserError: which jobs of the sweep failed, and how to repeat them.
    """
    SweepWatch.folder = None
    try:
        entry()
    except Exception as error:
        failed = _failed_jobs(artefact)
        if not failed:
            raise
        if str(error) not in [job.error for job in failed]:  # of the sweeper, such as that no trial has a value
            raise UserError(
                f"{_summary(failed, artefact)}; the sweep ended with {type(error).__name__}: {error}"
            ) from error
    if failed := _failed_jobs(artefact):
        raise UserError(_summary(failed, artefact))


def _failed_jobs(artefact: str | None) -> list[SweepJob]:
    return [job for job in _jobs(artefact) if job.error is not None]


def _jobs(artefact: str | None) -> list[SweepJob]:
    return load_jobs(SweepWatch.folder, (artefact,)) if SweepWatch.folder and artefact else []


def _summary(failed: list[SweepJob], artefact: str | None) -> str:
    """Which jobs failed, those of one error together."""
    jobs = _jobs(artefact)
    keys = varying_keys(jobs)
    by_error: dict[str, list[str]] = {}
    for job in failed:
        what = " ".join(f"{key}={job.overrides[key]}" for key in keys if key in job.overrides)
        name = job.folder.root.name
        by_error.setdefault(str(job.error), []).append(f"{name} ({what})" if what else name)
    reasons = "; ".join(f"{', '.join(names)}: {error}" for error, names in by_error.items())
    return f"{len(failed)} of {len(jobs)} jobs failed: {reasons}; the same command with {_repeats()}"


def _repeats() -> str:
    return f"hydra.sweep.dir={terminal(str(SweepWatch.folder))} repeats only what is not finished"
