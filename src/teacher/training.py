"""Training the adapter, router and projector."""

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.logging import TensorBoardWriter, progress_bar
from src.student.context import Resume
from src.teacher.config import TeacherConfig
from src.teacher.engine import AdaptedLM, Engine
from src.teacher.processes import add_gradients, add_up, state
from src.teacher.prompts import PromptBatch, PromptBuilder
from src.teacher.recommender import FrozenRecommender
from src.teacher.sampling import sample_candidates
from src.teacher.schedule import embedding_probability, learning_rate_factor

_MIN_HISTORY = 3


@dataclass(frozen=True)
class TeacherParts:
    """What training, evaluation and export share."""

    engine: Engine
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
    validate: Callable[[], float],
    save_best: Callable[[], None],
    resume: Resume,
    logger: logging.Logger,
    tb_writer: TensorBoardWriter,
) -> float:
    """Run `num_epochs` over `rows`, or go on with an interrupted training.

    What a step draws (candidates, template, markers, dropout) depends on the seed and the step's number alone, so a
    resumed training and several processes compute what one undisturbed process does. The last state is saved every
    `save_interval` epochs and every `save_steps` steps.

    Args:
        validate: called after each epoch, its value is to be high; save_best: called where it is the highest so far.

    Returns:
        The best value.

    Raises:
        UserError: the loss is not finite, memory runs out, or the last state is damaged.
    """
    config, main = parts.config, state().is_main_process
    per_epoch = -(-len(rows) // config.batch_size)
    total_steps = per_epoch * config.num_epochs
    optimizer = torch.optim.Adam(parts.engine.lora.parameter_groups(config.lr, config.weight_decay))
    base_rates = [group["lr"] for group in optimizer.param_groups]
    saved = {"adapter": _AdapterState(parts.engine.lora), "optimizer": optimizer}
    progress = resume.load(saved)
    if progress is None:
        progress = {"step": 0, "losses": [], "best": float("-inf")}
        if main:
            resume.save(progress, saved)  # what was made before the first step need not be made again
    else:
        logger.info("going on after step %d of %d", progress["step"], total_steps)
    with progress_bar() as bar:
        task = bar.add_task("teacher", total=total_steps, completed=progress["step"], info="")
        for step in range(progress["step"], total_steps):
            epoch, place = divmod(step, per_epoch)
            batch = np.array_split(np.random.default_rng([seed, epoch]).permutation(rows), per_epoch)[place]
            factor = learning_rate_factor(step, total_steps)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            begin = time.perf_counter()
            loss, tokens = _step(parts, batch, embedding_probability(step, total_steps), [seed, step], optimizer)
            speed = tokens / (time.perf_counter() - begin)
            progress["step"] = step + 1
            progress["losses"].append(loss)
            for name, value in (("loss", loss), ("lr", config.lr * factor), ("tokens_per_s", speed)):
                tb_writer.add_scalar(f"train/{name}", value, step + 1)
            bar.update(task, advance=1, info=f"loss {loss:.3f}, {speed:,.0f} tokens/s")
            if place + 1 == per_epoch:
                parts.engine.lora.model.eval()
                _end_epoch(progress, epoch + 1, config.num_epochs, validate, save_best, logger, tb_writer)
            if main and _is_save_step(step + 1, per_epoch, total_steps, config):
                resume.save(progress, saved)
    parts.engine.lora.model.eval()
    return progress["best"]


@dataclass(frozen=True)
class _AdapterState:
    """What an adapted LM learns, as `Stateful`."""

    lora: AdaptedLM

    def state_dict(self) -> dict[str, Any]:
        return {name: tensor.detach().clone() for name, tensor in self.lora.state().items()}

    def load_state_dict(self, given: dict[str, Any]) -> None:
        self.lora.load_state(given)


def _is_save_step(step: int, per_epoch: int, total_steps: int, config: TeacherConfig) -> bool:
    return step == total_steps or step % (per_epoch * config.save_interval) == 0 or step % config.save_steps == 0


def _end_epoch(
    progress: dict[str, Any],
    epoch: int,
    num_epochs: int,
    validate: Callable[[], float],
    save_best: Callable[[], None],
    logger: logging.Logger,
    tb_writer: TensorBoardWriter,
) -> None:
    value = validate()
    loss, progress["losses"] = float(np.mean(progress["losses"])), []
    tb_writer.add_scalar("valid/hr@1_all", value, epoch)
    logger.info("teacher epoch %d/%d: loss %.4f, validation HR@1 x ValidRatio %.4f", epoch, num_epochs, loss, value)
    if value > progress["best"]:
        progress["best"] = value
        save_best()


def _step(
    parts: TeacherParts,
    rows: np.ndarray,
    embed_probability: float,
    seeds: list[int],
    optimizer: torch.optim.Optimizer,
) -> tuple[float, int]:
    """One optimizer step over micro-batches, of which each process takes its share.

    Returns:
        The mean loss of the rows, and their number of tokens.
    """
    config, lora = parts.config, parts.engine.lora
    lora.model.train()
    optimizer.zero_grad(set_to_none=True)
    total, tokens = 0.0, 0
    for number, examples in enumerate(_micro_batches(parts, rows, seeds)):
        random = np.random.default_rng([*seeds, 0, number])
        users = parts.recommender.users(parts.dataset.train, np.array([e.row for e in examples]))
        if number % state().num_processes != state().process_index:
            with torch.no_grad():
                lora.router(users)  # so that BatchNorm's statistics are those of all rows everywhere
            continue
        batch = _prompt_batch(parts, examples, bool(random.random() < embed_probability), random)
        torch.manual_seed(int(random.integers(2**31)))  # of the dropout
        try:
            total += _loss(parts, batch.to(lora.llm.device), users, len(examples) / len(rows))
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(_out_of_memory(config)) from error
        tokens += int(batch.mask.sum())
    total, tokens = add_up([total, tokens], lora.llm.device)
    if not np.isfinite(total):
        raise UserError(f"teacher.lr={config.lr}: the training loss became {total}; lower it")
    add_gradients(p for group in optimizer.param_groups for p in group["params"])
    optimizer.step()
    return total, int(tokens)


def _out_of_memory(config: TeacherConfig) -> str:
    hint = "" if config.gradient_checkpointing else ", set teacher.gradient_checkpointing=true"
    return (
        f"teacher.micro_batch_size={config.micro_batch_size}: the GPU's memory ran out; lower it (a step's batch stays "
        f"teacher.batch_size){hint}, or shorten the prompts: teacher.max_history={config.max_history}, "
        f"teacher.num_candidates={config.num_candidates}"
    )


@dataclass(frozen=True)
class _Example:
    """A training row and the candidates that it is shown with."""

    row: int
    history: np.ndarray
    candidates: np.ndarray
    target: int


def _micro_batches(parts: TeacherParts, rows: np.ndarray, seeds: list[int]) -> list[list[_Example]]:
    """A step's rows with their candidates, those of similar length together: padding costs as much as text."""
    train, config = parts.dataset.train, parts.config
    examples = []
    for row in rows.tolist():
        history, target = train.history(row), int(train.targets[row])
        random = np.random.default_rng([*seeds, 1, row])
        candidates = sample_candidates(random, parts.dataset.num_items, config.num_candidates, history, target)
        examples.append(_Example(row, history[-config.max_history :], candidates, target))
    examples.sort(key=lambda e: sum(parts.builder.title_length(i) for i in (*e.history, *e.candidates)))
    count = -(-len(rows) // config.micro_batch_size)
    bounds = np.linspace(0, len(examples), count + 1).round().astype(int)
    return [examples[begin:end] for begin, end in itertools.pairwise(bounds)]


def _prompt_batch(
    parts: TeacherParts, examples: list[_Example], embed: bool, random: np.random.Generator
) -> PromptBatch:
    template = int(random.integers(len(parts.builder.templates)))
    prompts = [parts.builder.prompt(e.history, e.candidates, template, embed) for e in examples]
    return parts.builder.batch(prompts, [parts.builder.answer(e.target) for e in examples])


def _loss(parts: TeacherParts, batch: PromptBatch, users: Tensor, share_of_step: float) -> float:
    """Forward and backward of one micro-batch; returns the loss scaled by its share of the step."""
    lora = parts.engine.lora
    gates = lora.router(users)
    with lora.gated(gates):  # spans backward: gradient checkpointing runs the layers again there
        loss = parts.engine.loss(batch, gates) * share_of_step
        loss.backward()
    return float(loss.detach())
