"""Training the adapter, router and projector."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.logging import TensorBoardWriter, progress_bar
from src.teacher.config import TeacherConfig
from src.teacher.engine import NativeEngine
from src.teacher.prompts import PromptBuilder
from src.teacher.recommender import FrozenRecommender
from src.teacher.sampling import sample_candidates
from src.teacher.schedule import embedding_probability, learning_rate_factor

_MIN_HISTORY = 3


@dataclass(frozen=True)
class TeacherParts:
    """What training, evaluation and export share."""

    engine: NativeEngine
    builder: PromptBuilder
    recommender: FrozenRecommender
    dataset: SequenceDataset
    config: TeacherConfig


def training_rows(dataset: SequenceDataset, max_rows: int | None, seed: int) -> np.ndarray:
    """Row numbers the teacher learns from: those with at least 3 items of history (as upstream), sampled.

    Returns:
        int64 [N], ascending.
    """
    long_enough = np.flatnonzero(dataset.train.pos - dataset.train.start >= _MIN_HISTORY)
    if len(long_enough) == 0:
        raise UserError(
            f"dataset {dataset.name}: no training row has {_MIN_HISTORY} items of history, the teacher needs them"
        )
    if max_rows is None or max_rows >= len(long_enough):
        return long_enough
    return np.sort(np.random.default_rng(seed).choice(long_enough, max_rows, replace=False))


def train_adapter(
    parts: TeacherParts,
    rows: np.ndarray,
    seed: int,
    save: Callable[[int], None],
    logger: logging.Logger,
    tb_writer: TensorBoardWriter,
) -> None:
    """Run `num_epochs` over `rows`; `save(epoch)` is called every `save_interval` epochs and after the last."""
    config = parts.config
    per_epoch = -(-len(rows) // config.batch_size)
    total_steps = per_epoch * config.num_epochs
    optimizer = torch.optim.Adam(parts.engine.lora.parameter_groups(config.lr, config.weight_decay))
    base_rates = [group["lr"] for group in optimizer.param_groups]
    rng = np.random.default_rng(seed)
    parts.engine.lora.model.train()
    step = 0
    with progress_bar() as bar:
        task = bar.add_task("teacher", total=total_steps, info="")
        for epoch in range(1, config.num_epochs + 1):
            losses = []
            for batch in np.array_split(rng.permutation(rows), per_epoch):
                for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                    group["lr"] = rate * learning_rate_factor(step, total_steps)
                probability = embedding_probability(step, total_steps)
                losses.append(_step(parts, batch, probability, rng, optimizer))
                step += 1
                tb_writer.add_scalar("train/loss", losses[-1], step)
                bar.update(task, advance=1, info=f"loss {losses[-1]:.3f}")
            logger.info("teacher epoch %d/%d: loss %.4f", epoch, config.num_epochs, float(np.mean(losses)))
            if epoch % config.save_interval == 0 or epoch == config.num_epochs:
                save(epoch)
    parts.engine.lora.model.eval()


def _step(
    parts: TeacherParts,
    rows: np.ndarray,
    embed_probability: float,
    rng: np.random.Generator,
    optimizer: torch.optim.Optimizer,
) -> float:
    """One optimizer step over micro-batches; returns the mean loss of its rows."""
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    num_parts = -(-len(rows) // parts.config.micro_batch_size)
    for micro in np.array_split(rows, num_parts):
        embed = bool(rng.random() < embed_probability)
        loss = _micro_batch_loss(parts, micro, embed, rng, len(micro) / len(rows))
        if not np.isfinite(loss):
            raise UserError(f"teacher.lr={parts.config.lr}: the training loss became {loss}; lower it")
        total += loss
    optimizer.step()
    return total


def _micro_batch_loss(
    parts: TeacherParts, rows: np.ndarray, embed: bool, rng: np.random.Generator, share: float
) -> float:
    """Forward and backward of one micro-batch, scaled by its share of the step; returns the scaled loss."""
    train, config = parts.dataset.train, parts.config
    template = int(rng.integers(len(parts.builder.templates)))
    prompts, answers = [], []
    for row in rows:
        history, target = train.history(row), int(train.targets[row])
        candidates = sample_candidates(rng, parts.dataset.num_items, config.num_candidates, history, target)
        prompts.append(parts.builder.prompt(history[-config.max_history :], candidates, template, embed))
        answers.append(parts.builder.answer(target))
    lora = parts.engine.lora
    batch = parts.builder.batch(prompts, answers).to(lora.llm.device)
    gates = lora.router(parts.recommender.users(train, rows))
    with lora.gated(gates):  # spans backward: gradient checkpointing runs the layers again there
        loss = parts.engine.loss(batch, gates) * share
        loss.backward()
    return float(loss.detach())
