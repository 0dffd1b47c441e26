"""A stage of a run: what it is given, the steps it consists of, and the one rule by which a step is done.

A step that is complete and made from what is wanted is skipped; one that is complete and made from something else is
refused, unless `general.overwrite` is on; one that was interrupted goes on, or starts from the beginning where it
cannot; the log says which, and why.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from src.core.artefacts import Artefact, State, Status, locked
from src.core.data_utils import SequenceDataset, load_dataset
from src.core.errors import UserError
from src.core.files import sha256_file
from src.core.git_info import save_git_info
from src.core.logging import open_log, record_times_in, start_logging
from src.core.paths import RunFolder, data_dir
from src.exp.settings import Settings
from src.exp.stage.messages import one_line
from src.exp.stage.snapshot import save_configuration

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage is given; nothing in its folder has been touched yet.

    Attributes:
        name: such as `baseline`; names its log, its TensorBoard folder and its snapshot.
    """

    name: str
    settings: Settings
    folder: RunFolder
    dataset: SequenceDataset
    logger: logging.Logger

    @cached_property
    def device(self) -> "torch.device":
        """The device of `general.device`; PyTorch is imported when it is asked for first."""
        from src.core.device import resolve_device

        return resolve_device(self.settings.general.device, self.logger)

    def hashes(self, *paths: Path) -> dict[str, str]:
        """SHA-256 by path relative to the run folder, of files that have just been written."""
        return {str(path.relative_to(self.folder.root)): sha256_file(path) for path in paths}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that a stage makes.

    Attributes:
        artefact: where its record is.
        made_from: what it would be made from now; asked again after the steps before it are done.
        require: refuses inputs that have to be read for that; asked before the stage's folder is touched, if this is
            the first step to be done.
        work: makes it, from where an interrupted making stopped; returns its best validation value, if it has one.
        files: hashes of what it consists of, as in `Record`.
        underway: keys of `made_from` that may change while it is being made.
        forget: removes what an interrupted or replaced making has left, so that `work` begins anew.
    """

    artefact: Artefact
    made_from: Callable[[], dict[str, Any]]
    work: Callable[[], float | None]
    files: Callable[[], dict[str, str]] = field(default=dict)
    require: Callable[[], None] = field(default=lambda: None)
    underway: tuple[str, ...] = ()
    forget: Callable[[], None] = field(default=lambda: None)

    def status(self) -> Status:
        return self.artefact.status(self.made_from(), verify=True)


Plan = Callable[[Stage], list[Step]]


def run_folder() -> RunFolder:
    """The run folder of this job."""
    return RunFolder(Path(HydraConfig.get().runtime.output_dir))


def run_stage(cfg: Settings, name: str, plan: Plan) -> float:
    """Do what is not done of a stage's steps, under the lock of the run folder.

    Args:
        plan: the steps, in order; whatever can be refused without reading much is refused here, before anything is
            computed.

    Returns:
        The value of the first step.

    Raises:
        UserError: another process works in the folder, or the folder holds a result that was made from something else
            and `general.overwrite` is off.
    """
    folder = run_folder()
    with locked(folder.root):
        stage = look(cfg, name)
        steps = plan(stage)
        todo = _first_to_do(steps, stage)
        if todo is not None:
            steps[todo].require()
            open_stage(stage)
            for i in range(todo, len(steps)):
                _carry_out(steps[i], followers=steps[i + 1 :], stage=stage)
        else:
            stage.logger.info("stage %s: skipped: complete and unchanged (%s)", name, folder.root)
            _forget_errors(steps)
        record = steps[0].artefact.status().record
    assert record is not None and record.value is not None
    return record.value


def _forget_errors(steps: list[Step]) -> None:
    """A refusal that was noted in a complete record counts until the step is found as wanted."""
    for step in steps:
        record = step.artefact.status().record
        if record is not None and record.error is not None:
            step.artefact.note_error(None)


def look(cfg: Settings, name: str, *, logger: logging.Logger | None = None) -> Stage:
    """The stage; nothing in its folder is touched.

    Raises:
        UserError: the tracker or the data set cannot be used.
    """
    if logger is None:  # of the main process, the only one that tracks
        logger = start_logging(cfg.logging)
        cfg.logging.require()
    dataset = load_dataset(cfg.dataset, data_dir(cfg), logger)
    return Stage(name=name, settings=cfg, folder=run_folder(), dataset=dataset, logger=logger)


def open_stage(stage: Stage) -> None:
    """From here on the stage computes, and writes into its folder: log, times, snapshot of the configuration, commit.

    Raises:
        UserError: there is no such device.
    """
    from src.core.seed import set_seed

    folder, device = stage.folder, stage.device
    set_seed(stage.settings.general.seed)
    open_log(folder.log_file(stage.name))
    stage.logger.info("stage %s in %s, on %s", stage.name, folder.root, device)
    record_times_in(folder.time_file)
    save_configuration(folder, stage.name, stage.settings.composed)
    save_git_info(folder.root)


def _first_to_do(steps: list[Step], stage: Stage) -> int | None:
    """The first step that is not complete as wanted; None if all are.

    Raises:
        UserError: it is complete, but made from something else.
    """
    for i, step in enumerate(steps):
        status = step.status()
        if not status.is_current:
            _require_replaceable(step, status, stage)
            return i
    return None


def _require_replaceable(step: Step, status: Status, stage: Stage) -> None:
    if status.state is State.COMPLETE and not stage.settings.general.overwrite:
        raise UserError(
            f"{stage.folder.root}: {step.artefact.name} is complete there, and {status.changes}; use another "
            "hydra.run.dir, or general.overwrite=true to make it again"
        )


def _carry_out(step: Step, *, followers: list[Step], stage: Stage) -> None:
    """Make what the step makes, unless it is there. The steps that follow are made from it: they count no more."""
    status, name, logger = step.status(), step.artefact.name, stage.logger
    if status.is_current:
        logger.info("%s: complete and unchanged", name)
        return
    _require_replaceable(step, status, stage)
    goes_on = status.state is State.INTERRUPTED and set(status.changed) <= set(step.underway)
    if status.state is State.INTERRUPTED:
        if goes_on:
            logger.info("%s: goes on%s", name, f" although {status.changes}" if status.changed else "")
        else:
            logger.info("%s: starts from the beginning: %s", name, status.changes)
    elif status.record is not None or status.why:
        logger.info("%s: made again: %s", name, status.why or status.changes)
    if not goes_on:
        step.forget()
        for follower in followers:
            follower.artefact.outdate(f"its {name} was made again")
    step.artefact.begin(step.made_from())
    try:
        value = step.work()
    except BaseException as error:
        with suppress(UserError):  # of a full disk: the first error says more
            step.artefact.note_error(one_line(error) if isinstance(error, Exception) else "it was interrupted")
        raise
    step.artefact.complete(value, step.files())
