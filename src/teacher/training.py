"""Training the adapter, router and projector."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.foreign.typed import typed
from src.core.logging import progress_bar
from src.student.context import RunContext, Stateful, diverged
from src.teacher.adapter.adapted_lm import AdaptedLM
from src.teacher.config import TeacherConfig
from src.teacher.model import TeacherModel
from src.teacher.processes import reduce_gradients, reduce_sum, state
from src.teacher.prompt.builder import PromptBatch
from src.teacher.prompt.candidates import sample_candidates
from src.teacher.schedule import embedding_probability, learning_rate_factor

_MIN_HISTORY = 3


def learnt_rows(dataset: SequenceDataset, config: TeacherConfig, seed: int) -> np.ndarray:
    """The training rows that a teacher of these settings has seen: `training_rows`, or none without epochs."""
    return training_rows(dataset, config.max_train_rows, seed) if config.num_epochs else np.empty(0, dtype=np.int64)


def rows_with_history(dataset: SequenceDataset) -> np.ndarray:
    """Training rows with at least 3 items of history (as upstream), int64 [N], ascending.

    Raises:
        UserError: no row has them.
    """
    long_enough = np.flatnonzero(dataset.train.pos - dataset.train.start >= _MIN_HISTORY)
    if len(long_enough) == 0:
        raise UserError(
            f"dataset {dataset.name}: no training row has {_MIN_HISTORY} items of history, the teacher needs them; add "
            "data, or teacher.num_epochs=0 takes the LLM as it is"
        )
    return long_enough


def training_rows(dataset: SequenceDataset, max_rows: int | None, seed: int) -> np.ndarray:
    """Row numbers to learn from, sampled: int64 [N], ascending."""
    long_enough = rows_with_history(dataset)
    if max_rows is None or max_rows >= len(long_enough):
        return long_enough
    return np.sort(np.random.default_rng(seed).choice(long_enough, max_rows, replace=False))


def train_adapter(
    teacher: TeacherModel,
    rows: np.ndarray,
    *,
    validate: Callable[[], float],
    save_best: Callable[[], None],
    context: RunContext,
) -> float:
    """Run `num_epochs` over `rows`, or go on with an interrupted training; without epochs keep the adapter as it is.

    What a step draws (candidates, template, markers, dropout) depends on the seed and the step's number alone, so a
    resumed training and several processes compute what one undisturbed process does. The last state is saved every
    `save_interval` epochs and every `save_steps` steps, by the main process.

    Args:
        rows: training rows int64 [N].
        validate: called after each epoch, its value is to be high; save_best: called where it is the highest so far.

    Returns:
        The best value.

    Raises:
        UserError: the loss is not finite, memory runs out, or the last state is damaged.
    """
    if teacher.config.num_epochs == 0:
        teacher.lm.lora.model.eval()
        save_best()
        return validate()
    training = _Training(teacher, rows, context)
    training.go_on()
    with progress_bar() as bar:
        task = bar.add_task("teacher", total=training.num_steps, completed=training.step, info="")
        while training.step < training.num_steps:
            bar.update(task, advance=1, info=training.take_step())
            if training.step % training.steps_per_epoch == 0:
                training.end_epoch(validate, save_best)
            training.save_if_due()
    teacher.lm.lora.model.eval()
    return training.best


class _Progress(TypedDict):
    step: int
    best: float
    losses: list[float]


class _Training:
    """A training of the adapter between two steps.

    Attributes:
        step: steps taken; best: the best validation value so far.
    """

    def __init__(self, teacher: TeacherModel, rows: np.ndarray, context: RunContext) -> None:
        config, lora = teacher.config, teacher.lm.lora
        self.teacher, self.rows, self.context = teacher, rows, context
        self.steps_per_epoch = -(-len(rows) // config.batch_size)
        self.num_steps = self.steps_per_epoch * config.num_epochs
        self.step, self.best = 0, float("-inf")
        self._losses: list[float] = []  # of the epoch's steps
        self._optimizer = torch.optim.Adam(lora.parameter_groups(config.lr, config.weight_decay))
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._changing: dict[str, Stateful] = {"adapter": _AdapterState(lora), "optimizer": self._optimizer}

    def go_on(self) -> None:
        """Take up an interrupted training, if there is one."""
        resume = self.context.resume
        progress = resume.load(self._changing) if resume else None
        if resume and progress is not None:
            given = typed(progress, _Progress, where=str(resume.file), advice="delete it to train from the start")
            self.step, self.best, self._losses = given["step"], given["best"], given["losses"]
            self.context.logger.info("going on after step %d of %d", self.step, self.num_steps)

    def save_if_due(self) -> None:
        config = self.teacher.config
        every = (config.save_steps, self.steps_per_epoch * config.save_interval, self.num_steps)
        if self.context.resume and state().is_main_process and any(self.step % steps == 0 for steps in every):
            progress = {"step": self.step, "losses": self._losses, "best": self.best}
            self.context.resume.save(progress, self._changing)

    def take_step(self) -> str:
        """One optimizer step; returns what to show of it."""
        factor = learning_rate_factor(self.step, self.num_steps)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        probability = embedding_probability(self.step, self.num_steps)
        begin = time.perf_counter()
        loss, tokens = _step(
            self.teacher,
            self._rows_of_step(self.step),
            embed_probability=probability,
            step=self.step,
            optimizer=self._optimizer,
            context=self.context,
        )
        speed = tokens / (time.perf_counter() - begin)
        self.step += 1
        self._losses.append(loss)
        for name, value in (("loss", loss), ("lr", self.teacher.config.lr * factor), ("tokens_per_s", speed)):
            self.context.writer.add_scalar(f"train/{name}", value, self.step)
        return f"loss {loss:.3f}, {speed:,.0f} tokens/s"

    def _rows_of_step(self, step: int) -> np.ndarray:
        """The step's share of its epoch's order, int64 [batch_size at most]."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.context.seed, epoch]).permutation(self.rows)
        return np.array_split(order, self.steps_per_epoch)[place]

    def _require_finite_adapter(self) -> None:
        """Raises a UserError where the step just taken has ruined weights, which no loss has seen yet."""
        if not all(bool(tensor.isfinite().all()) for tensor in self.teacher.lm.lora.state().values()):
            rows = self._rows_of_step(self.step - 1)
            raise _diverged("the adapter's weights are not finite", self.teacher, rows, self.step, self.context)

    def end_epoch(self, validate: Callable[[], float], save_best: Callable[[], None]) -> None:
        """Validate, and keep the adapter if it is the best so far."""
        self._require_finite_adapter()
        self.teacher.lm.lora.model.eval()
        value, loss = validate(), float(np.mean(self._losses))
        self._losses = []
        self.context.writer.add_scalar("valid/hr@1_all", value, self.step)
        epoch, num_epochs = self.step // self.steps_per_epoch, self.teacher.config.num_epochs
        self.context.logger.info(
            "teacher epoch %d/%d: loss %.4f, validation HR@1 x ValidRatio %.4f", epoch, num_epochs, loss, value
        )
        if value > self.best:
            self.best = value
            save_best()


@dataclass(frozen=True)
class _AdapterState:
    """What an adapted LM learns, as `Stateful`."""

    lora: AdaptedLM

    def state_dict(self) -> dict[str, Any]:
        return {name: tensor.detach().clone() for name, tensor in self.lora.state().items()}

    def load_state_dict(self, given: dict[str, Any]) -> None:
        self.lora.load_state(given)


def _step(
    teacher: TeacherModel,
    rows: np.ndarray,
    *,
    embed_probability: float,
    step: int,
    optimizer: torch.optim.Optimizer,
    context: RunContext,
) -> tuple[float, int]:
    """One optimizer step over micro-batches, of which each process takes its share.

    Args:
        rows: training rows int64 [B].
        embed_probability: of markers that carry item embeddings, instead of placeholders, in a micro-batch.
        step: from 0; all that is drawn follows from it and the seed.

    Returns:
        The mean loss of the rows, and their number of tokens.

    Raises:
        UserError: the loss is not finite, or memory runs out.
    """
    config, lora, seeds = teacher.config, teacher.lm.lora, [context.seed, step]
    lora.model.train()
    optimizer.zero_grad(set_to_none=True)
    total, tokens = 0.0, 0
    for number, examples in enumerate(_micro_batches(teacher, rows, seeds)):
        random = np.random.default_rng([*seeds, 0, number])
        users = teacher.recommender.users(teacher.dataset.train, np.array([e.row for e in examples]))
        if number % state().num_processes != state().process_index:
            with torch.no_grad():
                lora.router(users)  # so that BatchNorm's statistics are those of all rows everywhere
            continue
        batch = _prompt_batch(teacher, examples, bool(random.random() < embed_probability), random)
        torch.manual_seed(int(random.integers(2**31)))  # of the dropout
        try:
            total += _loss(teacher, batch.to(lora.llm.device), users, len(examples) / len(rows))
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(_out_of_memory(config)) from error
        tokens += int(batch.mask.sum())
    total, all_tokens = reduce_sum([total, tokens], lora.llm.device)
    if not np.isfinite(total):
        raise _diverged(f"loss is {total}", teacher, rows, step + 1, context)
    reduce_gradients(p for group in optimizer.param_groups for p in group["params"])
    optimizer.step()
    return total, int(all_tokens)


def _diverged(what: str, teacher: TeacherModel, rows: np.ndarray, step: int, context: RunContext) -> UserError:
    """Of a step counted from 1: before the first, no rate has changed anything."""
    config = teacher.config
    first = (
        f"the LLM computes no finite loss as it is: look at its weights, or try another teacher.dtype={config.dtype}"
    )
    advice = first if step == 1 and what.startswith("loss") else f"lower teacher.lr={config.lr:g}"
    return diverged(what, context, place=f"step {step}", rows=rows, unit="step", advice=advice)


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


def _micro_batches(teacher: TeacherModel, rows: np.ndarray, seeds: list[int]) -> list[list[_Example]]:
    """A step's rows with their candidates, those of similar length together: padding costs as much as text."""
    train, config = teacher.dataset.train, teacher.config
    examples = []
    for row in rows.tolist():
        history, target = train.history(row), train.target(row)
        random = np.random.default_rng([*seeds, 1, row])
        candidates = sample_candidates(
            random, num_items=teacher.dataset.num_items, count=config.num_candidates, history=history, target=target
        )
        examples.append(_Example(row, history[-config.max_history :], candidates, target))
    examples.sort(key=lambda e: sum(teacher.builder.title_length(i) for i in (*e.history, *e.candidates)))
    count = -(-len(rows) // config.micro_batch_size)
    bounds = np.linspace(0, len(examples), count + 1).round().astype(int)
    return [examples[begin:end] for begin, end in itertools.pairwise(bounds)]


def _prompt_batch(
    teacher: TeacherModel, examples: list[_Example], embed: bool, random: np.random.Generator
) -> PromptBatch:
    template = int(random.integers(len(teacher.builder.templates)))
    prompts = [teacher.builder.prompt(e.history, e.candidates, template=template, embed=embed) for e in examples]
    return teacher.builder.batch(prompts, [teacher.builder.answer(e.target) for e in examples])


def _loss(teacher: TeacherModel, batch: PromptBatch, users: Tensor, share_of_step: float) -> float:
    """Forward and backward of one micro-batch; returns the loss scaled by its share of the step."""
    lora = teacher.lm.lora
    gates = lora.router(users)
    with lora.gated(gates):  # spans backward: gradient checkpointing runs the layers again there
        loss = teacher.lm.loss(batch, gates) * share_of_step
        loss.backward()
    return float(loss.detach())
