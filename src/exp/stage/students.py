"""What the two student stages share: the step that makes a student, and what follows its training."""

from collections.abc import Callable
from typing import Any

from src.core.paths import CONFIG_FILE, ITEMS_FILE, WEIGHTS_FILE
from src.core.tracking.base import BEST_TAG, TEST_TAG, Tracker
from src.exp.stage.stage import Stage, Step
from src.student.checkpoint import Catalogue, load_checkpoint, save_catalogue
from src.student.evaluator import Evaluation, write_evaluation
from src.student.lists import ListMetrics, evaluate_test
from src.student.training import FitResult, save_history


def student_step(
    stage: Stage, *, made_from: dict[str, Any], work: Callable[[], float], require: Callable[[], None] = lambda: None
) -> Step:
    """The step that trains a student and tests its best epoch; arguments as in `Step`."""
    folder, name = stage.folder.model_dir(stage.name), stage.name

    def forget() -> None:
        stage.folder.last_state_file(name).unlink(missing_ok=True)
        stage.folder.eval_file(name).unlink(missing_ok=True)

    def files() -> dict[str, str]:
        stage.folder.last_state_file(name).unlink(missing_ok=True)
        return stage.hashes(*(folder / name for name in (WEIGHTS_FILE, CONFIG_FILE, ITEMS_FILE)))

    return Step(
        artefact=stage.folder.artefact(name),
        made_from=lambda: made_from,
        work=work,
        files=files,
        require=require,
        forget=forget,
    )


def finish(stage: Stage, result: FitResult, tracker: Tracker) -> float:
    """Test the best epoch as it was saved, write items, history, ranks and metrics, and return the validation value."""
    folder, metrics = stage.folder, stage.settings.metrics
    save_catalogue(folder.model_dir(stage.name), Catalogue(stage.dataset.item_ids, stage.dataset.titles))
    save_history(result, folder.history_file(stage.name))
    evaluation = _test_saved(stage)
    tested = {f"{TEST_TAG}{name}": value for name, value in evaluation.by(metrics.masked).items()}
    tracker.conclude({f"{BEST_TAG}{metrics.monitor}": result.best_value, **tested}, result.best_epoch)
    write_evaluation(
        folder.eval_file(stage.name),
        folder.ranks_file(stage.name),
        evaluation,
        about(stage, stage.settings.student.name, f"models/{stage.name}"),
    )
    stage.logger.info(
        "test %s: %.4f (history removed: %.4f)",
        metrics.monitor,
        evaluation.metrics[metrics.monitor],
        evaluation.metrics_masked[metrics.monitor],
    )
    return result.best_value


def _test_saved(stage: Stage) -> Evaluation:
    """Evaluate the saved checkpoint of the stage on the test rows."""
    model, _ = load_checkpoint(stage.folder.model_dir(stage.name))
    metrics = stage.settings.metrics
    lists = ListMetrics.of(stage.dataset, metrics.list_length)
    return evaluate_test(model, stage.dataset, metrics, stage.device, lists=lists)


def about(stage: Stage, model: str, checkpoint: str) -> dict[str, object]:
    """The head of an evaluation file: of which model, on which rows, made by which code."""
    record = stage.folder.artefact(stage.name).status().record
    return {
        "model": model,
        "dataset": stage.dataset.name,
        "dataset_fingerprint": stage.dataset.fingerprint,
        "split": "test",
        "num_users": len(stage.dataset.test),
        "num_items": stage.dataset.num_items,
        "seed": stage.settings.general.seed,
        "git_commit": record.commit if record else "unknown",
        "checkpoint": checkpoint,
    }
