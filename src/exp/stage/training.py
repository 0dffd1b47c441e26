"""What a stage gives to a training: its last state, its TensorBoard points, the time that it takes."""

from collections.abc import Iterator
from contextlib import contextmanager

from src.core.logging import forget_times, tensorboard_writer, time_block
from src.exp.stage.stage import Stage
from src.student.context import Resume, RunContext


@contextmanager
def training(stage: Stage, time_name: str) -> Iterator[RunContext]:
    """The context of a training whose time counts as `time_name`, and which goes on from its last state.

    TensorBoard points after the last state of an interrupted training are taken away.
    """
    resume = Resume(stage.folder.last_state_file(stage.name))
    if not resume.file.is_file():
        forget_times(time_name)
    with time_block(time_name) as add_time:
        resume = Resume(resume.file, add_time)
        writer = tensorboard_writer(
            stage.folder.tensorboard_dir(stage.name), stage.settings.logging, keep_until=resume.steps_done()
        )
        yield RunContext(
            seed=stage.settings.general.seed, device=stage.device, logger=stage.logger, writer=writer, resume=resume
        )
