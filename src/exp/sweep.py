"""The jobs of a sweep: an error in one does not end the others, and a finished one is not done twice.

Each job keeps a record, `metrics/job_<entry point>.json`: its overrides, its whole configuration, and its value or its
error. It is written when the job begins, so that a killed job has one as well, and again when it ends. Records are
files because a launcher may run the jobs in other processes or on other machines.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from src.core.errors import UserError
from src.core.files import read_json, write_json
from src.core.logging import terminal_logger
from src.exp.report.provenance import flatten

_UNFINISHED = "did not end: interrupted or killed"
_WITHOUT_EFFECT = {"logging", "general.overwrite", "general.experiment_name"}  # on what a job computes


@dataclass(frozen=True)
class Job:
    """A job's record.

    Attributes:
        entry_point: such as `run_distill`; a folder may hold one job of each.
        overrides: by key, as they were typed.
        config: the whole configuration, by dotted key.
        value: what the stage returned, its best validation value; None where it failed.
    """

    folder: Path
    entry_point: str
    overrides: dict[str, str]
    config: dict[str, Any]
    value: float | None = None
    error: str | None = None

    @property
    def file(self) -> Path:
        return self.folder / "metrics" / f"job_{self.entry_point}.json"

    def write(self, value: float | None, error: str | None) -> None:
        content = asdict(self) | {"folder": self.folder.name, "value": value, "error": error}
        write_json(self.file, content)


class JobFailed(UserError):
    """A job's error as one line. Not the error itself, which might not survive the way back from another process."""


def load_jobs(sweep_dir: Path, entry_point: str = "*") -> list[Job]:
    """The records below a sweep folder, by job number."""
    files = sweep_dir.glob(f"*/metrics/job_{entry_point}.json")
    jobs = [Job(**read_json(file) | {"folder": file.parents[1]}) for file in files]
    return sorted(jobs, key=lambda job: (len(job.folder.name), job.folder.name, job.entry_point))


def varying_keys(jobs: list[Job]) -> list[str]:
    """Keys of the overrides that are not the same in all jobs, in the order they were typed."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def run_job(
    stage_function: Callable[[DictConfig], float | None],
    cfg: DictConfig,
    explain: Callable[[Exception], str],
    wants_trace: bool,
) -> float | None:
    """Run one job of a sweep, or take its value from its record if it is finished.

    Args:
        explain: turns an error into one line.

    Raises:
        JobFailed: the error, once it is in the record and in the log.
    """
    logger = terminal_logger()
    try:
        job = _this_job(cfg)
        before = _finished(job, cfg.general.overwrite)
        if before is None:
            return _run_recorded(job, stage_function, cfg, explain)
        logger.info("job %s is finished (%s), skipped", job.folder.name, job.folder)
        return before.value
    except Exception as error:
        message = explain(error)
        logger.error("job %s failed: %s", HydraConfig.get().job.num, message, exc_info=wants_trace)
        raise JobFailed(message) from None


def _run_recorded(
    job: Job,
    stage_function: Callable[[DictConfig], float | None],
    cfg: DictConfig,
    explain: Callable[[Exception], str],
) -> float | None:
    """Run a job, and let its record tell that it has begun and how it ended."""
    job.write(None, _UNFINISHED)
    try:
        value = stage_function(cfg)
    except Exception as error:
        job.write(None, explain(error))
        raise
    job.write(value, None)
    return value


def _this_job(cfg: DictConfig) -> Job:
    hydra = HydraConfig.get()
    overrides = dict(override.partition("=")[::2] for override in hydra.overrides.task)
    config = flatten(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False))
    return Job(Path(hydra.runtime.output_dir), hydra.job.name, overrides, config)


def _finished(job: Job, overwrite: bool) -> Job | None:
    """The record of the same job, finished earlier.

    Raises:
        UserError: the folder holds a job of other settings.
    """
    if overwrite or not job.file.is_file():
        return None
    before = Job(**read_json(job.file) | {"folder": job.folder})
    keys = sorted(before.config.keys() | job.config.keys())
    other = [key for key in keys if before.config.get(key) != job.config.get(key) and not _is_without_effect(key)]
    if other:
        raise UserError(
            f"{job.folder}: holds a job with other settings ({_differences(before, job, other)}); repeat a sweep with "
            "the same command, or give another hydra.sweep.dir"
        )
    return before if before.error is None else None


def _is_without_effect(key: str) -> bool:
    return key in _WITHOUT_EFFECT or key.split(".")[0] in _WITHOUT_EFFECT


def _differences(before: Job, now: Job, keys: list[str]) -> str:
    shown = [f"{key}={before.config.get(key)}, not {now.config.get(key)}" for key in keys[:3]]
    return "; ".join([*shown, *([f"and {len(keys) - 3} more"] if len(keys) > 3 else [])])


class SweepWatch(Callback):
    """Where the sweep of this process is; only Hydra's configuration knows."""

    folder: ClassVar[Path | None] = None
    entry_point: ClassVar[str] = ""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepWatch.folder = Path(config.hydra.sweep.dir).absolute()
        SweepWatch.entry_point = config.hydra.job.name


def run_jobs(entry: Callable[[], None]) -> None:
    """Let Hydra run one job or a sweep; a sweep runs to its end.

    Raises:
        UserError: which jobs of the sweep failed, and how to repeat them.
    """
    SweepWatch.folder = None
    try:
        entry()
    except Exception as error:
        if str(error) not in [job.error for job in _failed_jobs()]:
            raise
    if failed := _failed_jobs():
        raise UserError(_summary(failed))


def _failed_jobs() -> list[Job]:
    if SweepWatch.folder is None:
        return []
    return [job for job in load_jobs(SweepWatch.folder, SweepWatch.entry_point) if job.error is not None]


def _summary(failed: list[Job]) -> str:
    """Which jobs failed, those of one error together."""
    jobs = load_jobs(SweepWatch.folder, SweepWatch.entry_point)
    keys = varying_keys(jobs)
    by_error: dict[str, list[str]] = {}
    for job in failed:
        what = " ".join(f"{key}={job.overrides[key]}" for key in keys if key in job.overrides)
        by_error.setdefault(job.error, []).append(f"{job.folder.name} ({what})" if what else job.folder.name)
    reasons = "; ".join(f"{', '.join(names)}: {error}" for error, names in by_error.items())
    return (
        f"{len(failed)} of {len(jobs)} jobs failed: {reasons}; the same command with "
        f"hydra.sweep.dir={SweepWatch.folder} repeats only what is not finished"
    )
