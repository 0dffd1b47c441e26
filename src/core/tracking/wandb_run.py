"""Weights & Biases: a run for each training, grouped by run folder; the extra `wandb`."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from src.core.errors import UserError, check
from src.core.logging import LOGGER_NAME
from src.core.tracking.base import TrackedRun, Tracker, TrackingConfig
from src.core.tracking.remote import Journal, brief, require_package

_MODES = ("online", "offline")


@dataclass(frozen=True, kw_only=True)
class WandbConfig(TrackingConfig):
    """`logging=wandb`.

    Attributes:
        project: of Weights & Biases; mode: online, or offline: nothing is sent, `wandb sync <folder>` sends it later.
    """

    tracker: str = "wandb"
    project: str = "anyo_ilora_dllm2rec"
    mode: str = "online"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.mode in _MODES, "logging.mode", self.mode, f"one of {', '.join(_MODES)}")
        check(
            re.fullmatch(r"[^/\\#?%:]{1,128}", self.project) is not None,
            "logging.project",
            self.project,
            "a name without / \\ # ? % :",
        )

    def require(self) -> None:
        require_package(_library, "wandb")
        if self.mode == "online" and not _library().login(prompt=False, verify=False):
            raise UserError(
                "logging=wandb: nobody is logged in to Weights & Biases; run `wandb login`, set WANDB_API_KEY, or "
                "take logging.mode=offline"
            )

    def open(self, run: TrackedRun) -> Tracker:
        return _WandbRun(self, run)


def _library() -> Any:
    import wandb  # takes two seconds, and is an extra

    return wandb


class _WandbRun:
    def __init__(self, settings: WandbConfig, run: TrackedRun) -> None:
        self._wandb, self._journal, self._label = _library(), Journal(run, "wandb"), run.label
        run_id = self._journal.run_id or uuid4().hex[:12]
        try:
            self._run = self._wandb.init(
                project=settings.project,
                mode=settings.mode,
                name=run.label,
                group=run.group,
                job_type=run.name,
                id=run_id,
                resume="allow" if settings.mode == "online" else None,  # offline, the id alone joins them when synced
                config={**(yaml.safe_load(run.config) or {}), "decides": dict(run.hparams)},
                dir=str(self._journal.folder),
                reinit="create_new",  # the recommender's run lies within the teacher's
                settings=self._wandb.Settings(silent=True, console="off"),
            )
        except self._wandb.errors.Error as error:
            raise UserError(
                f"logging=wandb: no run could be begun ({brief(error)}); check network and login, or take "
                "logging.mode=offline"
            ) from error
        self._journal.begin(run_id)
        where = f"{self._journal.folder} (wandb sync sends it)" if settings.mode == "offline" else self._run.url
        logging.getLogger(LOGGER_NAME).info("wandb: %s in %s", run.label, where)

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        if self._journal.is_new(tag, scalar_value, global_step):
            self._run.log({tag: float(scalar_value)}, step=global_step)

    def flush(self) -> None:
        """Its service has a point as soon as it is logged."""

    def conclude(self, metrics: Mapping[str, float], step: int) -> None:
        """As the run's summary: a step before the last would be dropped."""
        self._run.summary.update({tag: float(value) for tag, value in metrics.items()})

    def add_files(self, files: Sequence[Path]) -> None:
        artifact = self._wandb.Artifact(re.sub(r"[^\w.-]", "-", self._label)[-120:], type="results")
        for file in files:
            artifact.add_file(str(file), name=file.name)
        self._run.log_artifact(artifact)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
        self._journal.close()
