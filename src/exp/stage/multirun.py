"""The jobs of a sweep: an error in one does not end the others, and a finished one is not done twice.

A job is an ordinary run folder: its record (`src.core.artefacts`) says whether it is complete, how it failed and what
it returned, `.hydra/<stage>/overrides.yaml` what was asked of it.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
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
    """Where the sweep of this process is; only Hydra's configuration knows.

    Attributes:
        lost: what is said of the jobs that a cluster has ended, by the job's number.
    """

    folder: ClassVar[Path | None] = None
    lost: ClassVar[dict[str, str]] = {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepWatch.folder = Path(config.hydra.sweep.dir).absolute()
        set_way_on(lambda: f"the same command with {_repeats()}")
        heed_lost_jobs(config)
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
    SweepWatch.folder, SweepWatch.lost = None, {}
    try:
        entry()
    except Exception as error:
        summary, errors = _summary(artefact)
        if not summary:
            raise
        if str(error) not in errors:  # of the sweeper, such as that no trial has a value
            raise UserError(f"{summary}; the sweep ended with {type(error).__name__}: {error}") from error
    summary, _ = _summary(artefact)
    if summary:
        raise UserError(summary)


def _summary(artefact: str | None) -> tuple[str, Collection[str]]:
    """Which jobs failed, those of one error together, and the errors; nothing where none failed."""
    if SweepWatch.folder is None or artefact is None:
        return "", ()
    jobs, by_error, lost = load_jobs(SweepWatch.folder, (artefact,)), dict[str, list[str]](), dict(SweepWatch.lost)
    keys = varying_keys(jobs)
    for job in jobs:
        name = job.folder.root.name
        what = " ".join(f"{key}={job.overrides[key]}" for key in keys if key in job.overrides)
        if error := lost.pop(name, job.error):
            by_error.setdefault(error, []).append(f"{name} ({what})" if what else name)
    for name, error in lost.items():  # before it had begun
        by_error.setdefault(error, []).append(name)
    reasons = "; ".join(f"{', '.join(names)}: {error}" for error, names in by_error.items())
    failed = sum(len(names) for names in by_error.values())
    summary = f"{failed} of {len(jobs) + len(lost)} jobs failed: {reasons}; the same command with {_repeats()}"
    return summary if failed else "", by_error


def _repeats() -> str:
    return f"hydra.sweep.dir={terminal(str(SweepWatch.folder))} repeats only what is not finished"


# --- jobs that a cluster ends -------------------------------------------------------------------------------

_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
_ASKED_EVERY = 60  # seconds, at most, between two looks at the queue
_GONE = "no longer in the queue"


def heed_lost_jobs(config: DictConfig) -> None:
    """Let submitit's launcher tell of a job that was killed as of one that failed, and wait for the others.

    Submitit 1.5 asks `sacct`, without whose data base it waits for ever, and hydra-submitit-launcher 1.2 raises at the
    first job that has left no result while the others are still queued. Hydra's own launchers return such a job as a
    failed one. To be removed when that does, too.
    """
    if "submitit" not in str(config.hydra.launcher._target_):
        return
    from submitit import Job  # both are of the optional group
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    mended: list[tuple[Any, str, Any]] = [
        (SlurmInfoWatcher, "_make_command", _squeue_command),
        (SlurmInfoWatcher, "read_info", _read_squeue),
        (SlurmJob, "watcher", SlurmInfoWatcher(delay_s=_ASKED_EVERY)),
        (Job, "results", _results),
    ]
    for owner, name, value in mended:
        setattr(owner, name, value)


def _squeue_command(watcher: Any) -> list[str] | None:
    """What lists the state of every job of this user that Slurm still knows."""
    is_waiting = watcher._registered - watcher._finished
    return ["squeue", "--me", "--states=all", "--array", "--noheader", "--format=%i|%T"] if is_waiting else None


def _read_squeue(watcher: Any, printed: bytes) -> dict[str, dict[str, str]]:
    """State by job, as submitit reads it: what has not ended is running, what Slurm has forgotten has ended."""
    states = dict(line.split("|", 1) for line in printed.decode().splitlines() if "|" in line)
    waited_for = watcher._registered - watcher._finished
    known = {job: states.get(job, _GONE) for job in waited_for}
    return {job: {"State": state if state in (*_ENDED, _GONE) else "RUNNING"} for job, state in known.items()}


def _results(job: Any) -> list[Any]:
    """What a job has returned; of one that has left nothing, a failure."""
    from submitit.core.utils import UncompletedJobError

    job.wait()
    try:
        outcome, result = job._get_outcome_and_result()
        if outcome != "error":
            return [result]
        reason = result.strip().splitlines()[-1]  # of a trace
    except UncompletedJobError:
        reason = job.state
    overrides, _, number, *_ = job.submission().args
    log = job.paths.stderr if job.paths.stderr.is_file() else job.paths.folder
    message = f"job {job.job_id} of the cluster has left no result ({reason}); see {log}"
    SweepWatch.lost[str(number)] = message
    terminal_logger().error("job %s failed: %s", number, message)
    return [JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=JobFailed(message))]
