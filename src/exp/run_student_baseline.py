"""Train the student without a teacher."""

from omegaconf import DictConfig

from src.core.logging import time_block
from src.exp.stage import begin_stage, run_entry_point
from src.exp.students import finish
from src.student.trainer_baseline import train_baseline


def run(cfg: DictConfig) -> float:
    stage = begin_stage(cfg, "baseline")
    writer = stage.tensorboard
    with time_block("student_baseline_train_time", stage.folder.time_file):
        result = train_baseline(
            stage.settings.student,
            stage.dataset,
            stage.settings.metrics,
            stage.folder.model_dir("baseline"),
            stage.settings.general.seed,
            stage.device,
            stage.logger,
            writer,
        )
    return finish(stage, result, writer)


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
