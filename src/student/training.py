"""The one training loop that baseline and distillation share."""

import csv
import io
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from src.core.data_utils import SequenceDataset, sample_rows
from src.core.device import multiplies_bfloat16, within_memory
from src.core.errors import UserError
from src.core.files import write_text
from src.core.foreign.typed import typed
from src.core.logging import progress_bar
from src.core.metrics import MetricsConfig
from src.core.seed import generator
from src.student.config import FitSettings, StudentConfig
from src.student.context import Resume, RunContext, Stateful, diverged
from src.student.cost import device_name
from src.student.datamodule import Batch, Loader, build_train_loader, require_full_batch
from src.student.evaluator import evaluate_model
from src.student.models import Student
from src.student.objectives import require_negatives

_CHECK_EVERY = 100  # steps between two looks at the losses: each makes a GPU wait
_ADVICE = "lower student.lr (distill.lr when distilling) or set student.grad_clip"


class Objective(Protocol):
    """What a step minimises.

    Attributes:
        components: what it remembers from step to step, by name; parameters that it trains belong to the model.
    """

    @property
    def components(self) -> Mapping[str, Stateful]: ...

    def __call__(self, model: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss (scalar) and its named terms, detached, for the log."""
        ...


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How the best epoch is found, on validation rows only, and kept.

    Attributes:
        monitor: the metric that is to be high; description: what the log calls it, the same if empty.
        evaluate: metrics on the validation rows with the model as it is.
        save_best: called with (epoch, value) whenever `monitor` improves.
    """

    monitor: str
    evaluate: Callable[[], dict[str, float]]
    save_best: Callable[[int, float], None]
    description: str = ""


def validation_on(
    dataset: SequenceDataset,
    model: Student,
    *,
    student: StudentConfig,
    metrics: MetricsConfig,
    save_best: Callable[[int, float], None],
    device: torch.device,
) -> Validation:
    """Validation of `model` on the data set's validation rows, or `student.max_valid_rows` of them."""
    rows = dataset.valid if student.max_valid_rows is None else sample_rows(dataset.valid, student.max_valid_rows)
    return Validation(
        monitor=metrics.monitor,
        evaluate=lambda: evaluate_model(model, rows, dataset, metrics.ks, device).by(metrics.masked),
        save_best=save_best,
        description=watched(metrics, student, dataset),
    )


def watched(metrics: MetricsConfig, student: StudentConfig, dataset: SequenceDataset) -> str:
    """What finds the best epoch, for logs and checkpoints: the metric, and the rows where they are a sample."""
    sample = student.valid_sample(len(dataset.valid))
    return f"{metrics.description} ({sample})" if sample else metrics.description


@dataclass
class FitResult:
    """Outcome of `fit`: the best epoch (1-based), its validation value, and one record per epoch."""

    best_epoch: int = 0
    best_value: float = float("-inf")
    history: list[dict[str, float]] = field(default_factory=list)

    def add(self, epoch: int, losses: dict[str, float], metrics: dict[str, float], monitor: str) -> bool:
        """Record an epoch; returns whether it is the best so far."""
        self.history.append({"epoch": epoch, **losses, **{f"valid/{k}": v for k, v in metrics.items()}})
        improved = metrics[monitor] > self.best_value
        if improved:
            self.best_epoch, self.best_value = epoch, metrics[monitor]
        return improved

    def is_over(self, settings: FitSettings) -> bool:
        """Whether the last epoch is reached, or the patience at its end."""
        epochs = len(self.history)
        return epochs >= settings.num_epochs or epochs - self.best_epoch >= settings.patience


def require_enough_data(student: StudentConfig, dataset: SequenceDataset) -> None:
    """Raises a UserError where there are too few rows for a batch, or too few items for the base loss."""
    require_full_batch(student.batch_size, len(dataset.train))
    require_negatives(student.loss, dataset.num_items, student.max_seq_len)


def train_student(
    model: Student,
    dataset: SequenceDataset,
    objective: Objective,
    *,
    validation: Validation,
    settings: FitSettings,
    context: RunContext,
) -> FitResult:
    """`fit` on the training rows, in an order that follows the seed.

    Raises:
        UserError: as `fit`, or the device's memory is too small.
    """
    if settings.mixed_precision and not multiplies_bfloat16(context.device):
        context.logger.warning(
            "student.mixed_precision=true: %s has no instructions for bfloat16, which it computes slower than float32",
            device_name(context.device),
        )
    what = f"student.batch_size={settings.batch_size} (distill.batch_size when distilling), {dataset.num_items:,} items"
    with within_memory(what, "lower it, student.loss_chunk (of student.loss=ce) or student.emb_size"):
        model.to(context.device)
        loader = build_train_loader(
            dataset,
            batching=settings.batching,
            max_len=model.config.max_seq_len,
            batch_size=settings.batch_size,
            device=context.device,
            generator=generator(context.seed, "shuffle"),
        )
        return fit(model, loader, objective, validation=validation, settings=settings, context=context)


def fit(
    model: Student,
    loader: Loader,
    objective: Objective,
    *,
    validation: Validation,
    settings: FitSettings,
    context: RunContext,
) -> FitResult:
    """Train with Adam and early stopping, or go on with an interrupted training.

    The state is saved every `save_interval` epochs, after the last one, and with each better epoch, so that it never
    lags behind what `save_best` has replaced.

    Raises:
        UserError: the loss is not finite, or the last state is damaged.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    components: dict[str, Stateful] = {
        "model": model,
        "optimizer": optimizer,
        "order": loader.order,
        **objective.components,
    }
    monitor, resume, logger = validation.monitor, context.resume, context.logger
    label = validation.description or monitor
    result = _go_on(resume, components, logger)
    with progress_bar() as bar:
        done = len(result.history) * len(loader)
        task = bar.add_task("training", total=settings.num_epochs * len(loader), completed=done, info="")
        while not result.is_over(settings):
            epoch, start = len(result.history) + 1, time.perf_counter()
            losses = _train_epoch(
                model,
                loader,
                objective,
                epoch=epoch,
                optimizer=optimizer,
                settings=settings,
                advance=lambda: bar.advance(task),
                context=context,
            )
            rows_per_second = loader.num_rows / (time.perf_counter() - start)
            metrics = _evaluate(validation, epoch, context)
            improved = result.add(epoch, losses, metrics, monitor)
            for name, value in result.history[-1].items():
                context.writer.add_scalar(name, value, epoch)
            if improved:
                validation.save_best(epoch, metrics[monitor])
            if resume and (improved or epoch % settings.save_interval == 0 or result.is_over(settings)):
                context.writer.flush()  # the points up to here are not made again
                resume.save({"step": epoch, "result": asdict(result)}, components)
            info = f"loss {losses['loss']:.4f}, {label} {metrics[monitor]:.4f}, {rows_per_second:,.0f} rows/s"
            bar.update(task, info=_in_short(losses, metrics[monitor]))
            logger.info("epoch %d/%d: %s%s", epoch, settings.num_epochs, info, " *" if improved else "")
    if len(result.history) < settings.num_epochs:
        logger.info("no better %s for %d epochs: stopping", label, settings.patience)
    logger.info("best epoch %d: validation %s %.4f", result.best_epoch, label, result.best_value)
    return result


def _in_short(losses: dict[str, float], value: float) -> str:
    """An epoch beside a progress bar: its loss, the terms where there are several, and the validation value.

    >>> _in_short({"loss": 5.41483, "loss_ce": 4.2, "loss_ranking": 2.43}, 0.04)
    '5.415: ce 4.2 ranking 2.43, valid 0.0400'
    """
    terms = [f"{name.removeprefix('loss_')} {value:.3g}" for name, value in losses.items() if name != "loss"]
    shown = f"{losses['loss']:.4g}: {' '.join(terms)}" if len(terms) > 1 else f"loss {losses['loss']:.4g}"
    return f"{shown}, valid {value:.4f}"


def _evaluate(validation: Validation, epoch: int, context: RunContext) -> dict[str, float]:
    """Metrics on the validation rows; the last step of an epoch may have ruined weights that no loss has seen yet."""
    try:
        return validation.evaluate()
    except UserError as error:
        kept = f"; {context.resume.last_good('epoch')}" if context.resume else ""
        raise UserError(f"{error}; after epoch {epoch}{kept}") from error


def _go_on(resume: Resume | None, components: Mapping[str, Stateful], logger: logging.Logger) -> FitResult:
    """The result up to where an interrupted training was saved; an empty one for a new training."""
    progress = resume.load(components) if resume else None
    if resume is None or progress is None:
        return FitResult()
    logger.info("going on after epoch %d: %s", progress["step"], resume.file)
    advice = "delete it to train from the start"
    return typed(progress.get("result"), FitResult, where=str(resume.file), advice=advice)


def _train_epoch(
    model: Student,
    loader: Loader,
    objective: Objective,
    *,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    settings: FitSettings,
    advance: Callable[[], None],
    context: RunContext,
) -> dict[str, float]:
    """One pass; returns the mean of the total loss and of each of its terms over the steps.

    Raises:
        UserError: one of them is not finite.
    """
    model.train()
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    recent: list[_Step] = []  # since the last look
    steps = 0  # counted: packed batches may be fewer than len(loader)
    for batch in loader:
        progress = (epoch - 1 + min(steps / len(loader), 1)) / settings.num_epochs
        optimizer.param_groups[0]["lr"] = learning_rate(settings, progress)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.mixed_precision):
            loss, terms = objective(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.grad_clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        steps += 1
        # Summed on the device: reading a value each step would make a GPU wait.
        recent.append((batch.row, {"loss": loss.detach(), **terms}))
        for name, value in recent[-1][1].items():
            sums[name] = sums.get(name, 0.0) + value
        if steps % _CHECK_EVERY == 0:
            _require_finite(sums, recent, epoch=epoch, steps=steps, context=context)
            recent.clear()
        advance()
    _require_finite(sums, recent, epoch=epoch, steps=steps, context=context)
    return {name: float(value) / steps for name, value in sums.items()}


def learning_rate(settings: FitSettings, progress: float) -> float:
    """That of a step, `progress` in [0, 1) being the share of `num_epochs` that lies behind it."""
    return settings.lr * (1 - progress) if settings.lr_schedule == "linear" else settings.lr


_Step = tuple[Tensor, dict[str, Tensor]]  # rows of a batch int64 [B], its losses by name


def _require_finite(
    sums: dict[str, Tensor], recent: list[_Step], *, epoch: int, steps: int, context: RunContext
) -> None:
    """Raises a UserError where a sum of losses is not finite, naming the first of the recent steps that was not.

    Args:
        recent: the latest of the `steps` taken in this epoch.
    """
    if all(math.isfinite(float(value)) for value in sums.values()):
        return
    finite = [all(math.isfinite(float(value)) for value in losses.values()) for _, losses in recent]
    place = finite.index(False) if False in finite else len(recent) - 1  # the sum alone is too large
    rows, losses = recent[place]
    found = [f"{name} is {float(value)}" for name, value in losses.items() if not math.isfinite(float(value))]
    raise diverged(
        " and ".join(found) or "the sum of the losses is too large",
        context,
        place=f"epoch {epoch}, step {steps - len(recent) + place + 1}",
        rows=rows.cpu().numpy(),
        unit="epoch",
        advice=_ADVICE,
    )


def save_history(result: FitResult, path: Path) -> None:
    """Write one CSV line per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(result.history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.history)
    write_text(path, text.getvalue())
