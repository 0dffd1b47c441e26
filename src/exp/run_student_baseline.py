"""Train the student without a teacher."""

from src.exp.settings import Settings
from src.exp.stage.entry import run_entry_point
from src.exp.stage.inputs import student_inputs
from src.exp.stage.stage import Stage, Step, run_stage
from src.exp.stage.students import finish, student_step
from src.student.trainer_baseline import train_baseline
from src.student.training import require_enough_data


def run(cfg: Settings) -> float:
    return run_stage(cfg, "baseline", plan)


def plan(stage: Stage) -> list[Step]:
    """One step; refused here is what could not be trained."""
    require_enough_data(stage.settings.student, stage.dataset)
    made_from = student_inputs(stage.settings, stage.dataset)
    return [student_step(stage, made_from=made_from, work=lambda: _train(stage))]


def _train(stage: Stage) -> float:
    """Train and test the student; returns the best validation value."""
    cfg = stage.settings
    with stage.training("student_baseline_train_time") as context:
        result = train_baseline(
            cfg.student,
            stage.dataset,
            metrics=cfg.metrics,
            folder=stage.folder.model_dir("baseline"),
            context=context,
        )
    return finish(stage, result, context.writer)


def main() -> None:
    run_entry_point(run, "baseline")


if __name__ == "__main__":
    main()
