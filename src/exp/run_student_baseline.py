"""Train the student without a teacher."""

from omegaconf import DictConfig

from src.exp.stage import Stage, run_entry_point, run_stage
from src.exp.students import finish
from src.student.trainer_baseline import train_baseline


def run(cfg: DictConfig) -> float:
    return run_stage(cfg, "baseline", train)


def train(stage: Stage) -> float:
    """Train and test the student; returns the best validation value."""
    with stage.training("student_baseline_train_time") as context:
        result = train_baseline(
            stage.settings.student,
            stage.dataset,
            metrics=stage.settings.metrics,
            folder=stage.folder.model_dir("baseline"),
            context=context,
        )
    return finish(stage, result, context.writer)


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
