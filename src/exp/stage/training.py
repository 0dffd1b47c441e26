"""What a stage gives to a training: its last state, its run in the tracker, the time that it takes."""

from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import OmegaConf

from src.core.logging import forget_times, time_block
from src.core.tracking.base import ScalarWriter, TrackedRun, Tracker, tracking
from src.exp.stage.stage import Stage
from src.student.context import Resume, RunContext


@contextmanager
def tracked(stage: Stage) -> Iterator[Tracker]:
    """The tracker's run of the step that is underway: that of the training which is gone on with, if there is one."""
    record = stage.folder.artefact(stage.name).status().record
    run = TrackedRun(
        folder=stage.folder,
        name=stage.name,
        config=OmegaConf.to_yaml(stage.settings.composed, resolve=True),
        hparams=record.made_from if record else {},
        keep_until=Resume(stage.folder.last_state_file(stage.name)).steps_done(),
    )
    with tracking(stage.settings.logging, run) as tracker:
        yield tracker


@contextmanager
def training(stage: Stage, time_name: str, writer: ScalarWriter) -> Iterator[RunContext]:
    """The context of a training whose time counts as `time_name`, and which goes on from its last state."""
    resume = Resume(stage.folder.last_state_file(stage.name))
    if not resume.file.is_file():
        forget_times(time_name)
    with time_block(time_name) as add_time:
        yield RunContext(
            seed=stage.settings.general.seed,
            device=stage.device,
            logger=stage.logger,
            writer=writer,
            resume=Resume(resume.file, add_time),
        )
