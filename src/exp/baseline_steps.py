"""The step of `run_student_baseline`."""

from src.exp.report.card import write_student_card
from src.exp.stage.inputs import student_inputs
from src.exp.stage.stage import Stage, Step
from src.exp.stage.students import finish, student_step
from src.exp.stage.training import tracked, training
from src.student.trainer_baseline import train_baseline
from src.student.training import require_enough_data


def plan(stage: Stage) -> list[Step]:
    """One step; refused here is what could not be trained."""
    require_enough_data(stage.settings.student, stage.dataset)
    made_from = student_inputs(stage.settings, stage.dataset)
    return [student_step(stage, made_from=made_from, work=lambda: _train(stage))]


def _train(stage: Stage) -> float:
    """Train and test the student; returns the best validation value."""
    cfg = stage.settings
    with tracked(stage) as tracker:
        with training(stage, "student_baseline_train_time", tracker) as context:
            result = train_baseline(
                cfg.student,
                stage.dataset,
                metrics=cfg.metrics,
                folder=stage.folder.model_dir("baseline"),
                context=context,
            )
        value = finish(stage, result, tracker)
        tracker.add_files([write_student_card(stage)])
    return value
