"""The one training loop that baseline and distillation share."""

import csv
import io
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.files import write_text
from src.core.logging import TensorBoardWriter, progress_bar
from src.core.metrics import MetricsConfig
from src.core.seed import generator
from src.student.config import FitSettings
from src.student.datamodule import Batch, Loader, build_train_loader
from src.student.evaluator import evaluate_model
from src.student.models import Student
from src.student.resume import GeneratorState, Resume, Stateful


class Objective(Protocol):
    """What a step minimises."""

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss (scalar) and its named parts, detached, for the log."""
        ...


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


def train_student(
    model: Student,
    dataset: SequenceDataset,
    objective: Objective,
    save_best: Callable[[int, float], None],
    metrics: MetricsConfig,
    settings: FitSettings,
    seed: int,
    device: torch.device,
    logger: logging.Logger,
    tb_writer: TensorBoardWriter,
    resume: Resume | None = None,
    parts: dict[str, Stateful] | None = None,
) -> FitResult:
    """Fit `model` on the training rows under `objective`, watched on the validation rows.

    Args:
        resume: where the last state is kept, and gone on from if there is one; None keeps none.
        parts: what the objective remembers from step to step.
    """
    model.to(device)
    shuffle = generator(seed, "shuffle")
    loader = build_train_loader(
        settings.batching,
        dataset.train,
        model.config.max_seq_len,
        dataset.pad_id,
        settings.batch_size,
        device,
        shuffle,
    )
    parts = {"shuffle": GeneratorState(shuffle), **(parts or {})}

    def validate() -> dict[str, float]:
        return evaluate_model(model, dataset.valid, dataset, metrics.ks, device).metrics

    return fit(
        model, loader, objective, validate, save_best, metrics.monitor, settings, logger, tb_writer, resume, parts
    )


def fit(
    model: nn.Module,
    loader: Loader,
    objective: Objective,
    validate: Callable[[], dict[str, float]],
    save_best: Callable[[int, float], None],
    monitor: str,
    settings: FitSettings,
    logger: logging.Logger,
    tb_writer: TensorBoardWriter,
    resume: Resume | None = None,
    parts: dict[str, Stateful] | None = None,
) -> FitResult:
    """Train with Adam and early stopping; the best epoch is chosen on validation only.

    Args:
        objective: loss of a batch; parameters it owns must be part of `model`.
        validate: metrics on the validation rows with the model as it is.
        save_best: called with (epoch, value) whenever `monitor` improves.
        resume, parts: see `train_student`. The state is saved every `save_interval` epochs, after the last one, and
            with each better epoch, so that it never lags behind what `save_best` has replaced.

    Raises:
        UserError: the loss is not finite, or the last state is damaged.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    parts = {"model": model, "optimizer": optimizer, **(parts or {})}
    result = _go_on(resume, parts, logger)
    with progress_bar() as bar:
        done = len(result.history) * len(loader)
        task = bar.add_task("training", total=settings.num_epochs * len(loader), completed=done, info="")
        while not result.is_over(settings):
            epoch, start = len(result.history) + 1, time.perf_counter()
            losses = _train_epoch(model, loader, objective, optimizer, settings, lambda: bar.advance(task))
            rows_per_second = loader.num_rows / (time.perf_counter() - start)
            _require_finite(losses, epoch)
            metrics = validate()
            improved = result.add(epoch, losses, metrics, monitor)
            for name, value in result.history[-1].items():
                tb_writer.add_scalar(name, value, epoch)
            if improved:
                save_best(epoch, metrics[monitor])
            if resume and (improved or epoch % settings.save_interval == 0 or result.is_over(settings)):
                resume.save(asdict(result), parts)
            info = f"loss {losses['loss']:.4f}, {monitor} {metrics[monitor]:.4f}, {rows_per_second:,.0f} rows/s"
            bar.update(task, info=info)
            logger.info("epoch %d/%d: %s%s", epoch, settings.num_epochs, info, " *" if improved else "")
    if len(result.history) < settings.num_epochs:
        logger.info("no better %s for %d epochs: stopping", monitor, settings.patience)
    logger.info("best epoch %d: validation %s %.4f", result.best_epoch, monitor, result.best_value)
    return result


def _go_on(resume: Resume | None, parts: dict[str, Stateful], logger: logging.Logger) -> FitResult:
    """The result up to where an interrupted training was saved; an empty one for a new training."""
    progress = resume.load(parts) if resume else None
    if progress is None:
        return FitResult()
    result = FitResult(**progress)
    logger.info("going on after epoch %d: %s", len(result.history), resume.file)
    return result


def _train_epoch(
    model: nn.Module,
    loader: Loader,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    settings: FitSettings,
    advance: Callable[[], None],
) -> dict[str, float]:
    """One pass; returns the mean of the total loss and of each part over its steps."""
    model.train()
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    steps = 0  # counted: packed batches may be fewer than len(loader)
    for batch in loader:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.mixed_precision):
            loss, parts = objective(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.grad_clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        steps += 1
        # Summed on the device: reading a value each step would make a GPU wait.
        for name, value in {"loss": loss.detach(), **parts}.items():
            sums[name] = sums.get(name, 0.0) + value
        advance()
    return {name: float(value) / steps for name, value in sums.items()}


def _require_finite(losses: dict[str, float], epoch: int) -> None:
    for name, value in losses.items():
        if value != value or value in (float("inf"), float("-inf")):
            raise UserError(f"training: {name} is {value} in epoch {epoch}; lower the learning rate or clip gradients")


def save_history(result: FitResult, path: Path) -> None:
    """Write one CSV line per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(result.history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.history)
    write_text(path, text.getvalue())
