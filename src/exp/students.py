"""What the two student stages share once a model is trained."""

from src.core.logging import TensorBoardWriter
from src.exp.stage import Stage
from src.student.checkpoint import load_checkpoint
from src.student.evaluator import Evaluation, evaluate_model, write_evaluation
from src.student.training import FitResult, save_history


def _test_saved(stage: Stage) -> Evaluation:
    """Evaluate the saved checkpoint of the stage on the test rows."""
    model, _ = load_checkpoint(stage.folder.model_dir(stage.name))
    return evaluate_model(model, stage.dataset.test, stage.dataset, stage.settings.metrics.ks, stage.device)


def finish(stage: Stage, result: FitResult, writer: TensorBoardWriter) -> float:
    """Test the best epoch as it was saved, write history, ranks and metrics, and return the validation value."""
    folder, metrics = stage.folder, stage.settings.metrics
    save_history(result, folder.history_file(stage.name))
    evaluation = _test_saved(stage)
    for name, value in evaluation.metrics.items():
        writer.add_scalar(f"test/{name}", value, result.best_epoch)
    writer.close()
    about = stage.about(stage.settings.student.name, len(stage.dataset.test), folder.model_dir(stage.name))
    write_evaluation(folder.eval_file(stage.name), folder.ranks_file(stage.name), evaluation, about)
    stage.logger.info(
        "test %s: %.4f (history masked: %.4f)",
        metrics.monitor,
        evaluation.metrics[metrics.monitor],
        evaluation.metrics_masked[metrics.monitor],
    )
    return result.best_value
