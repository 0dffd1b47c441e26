"""What every training is given besides its settings and its data, and its last state, from which it goes on."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.files import write_atomic
from src.core.foreign.tensors import read_tensors
from src.core.seed import random_state, restore_random_state
from src.core.tracking.base import ScalarWriter


class Stateful(Protocol):
    """Something that a training changes: a model, an optimizer, a policy."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, text, and lists, tuples and dictionaries of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class GeneratorState:
    """A random generator as `Stateful`."""

    generator: torch.Generator

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["state"])


@dataclass(frozen=True)
class Resume:
    """Where a training keeps its last state.

    The caller sees to it that a file found there is of the same training: same settings, same data, same teacher.

    Attributes:
        file: written whole or not at all; a training that finds it goes on from there.
        on_save: called after each save.
    """

    file: Path
    on_save: Callable[[], None] = lambda: None

    def save(self, progress: dict[str, Any], components: Mapping[str, Stateful]) -> None:
        """Write `progress`, the state of every component, and the process's random generators.

        Args:
            progress: plain values, among them `step`: how many steps of its points the training has done.
        """
        states = {name: component.state_dict() for name, component in components.items()}
        content = {"progress": progress, "components": states, "random": random_state()}
        write_atomic(self.file, lambda path: torch.save(content, path))
        self.on_save()

    def load(self, components: Mapping[str, Stateful]) -> dict[str, Any] | None:
        """Bring every component to where it was; returns `progress`, or None where nothing was saved.

        Raises:
            UserError: the file is damaged, or of another training.
        """
        if not self.file.is_file():
            return None
        try:
            # On the CPU, where generators live; modules and optimizers move what they take over to their device.
            content = read_tensors(self.file)
            progress = _progress(content)
            for name, component in components.items():
                before = component.state_dict()
                component.load_state_dict(content["components"][name])
                _require_alike(before, component.state_dict(), name)
                if isinstance(component, torch.optim.Optimizer):
                    _keep_options(component, before["param_groups"])
                    _check_moments(component)
            restore_random_state(content["random"])
            return progress
        except Exception as error:  # torch raises many kinds for a damaged or foreign file
            raise self._unusable(error) from error

    def steps_done(self) -> int:
        """`step` of the last save, 0 where nothing was saved: what later points come from is lost.

        Raises:
            UserError: the file is damaged.
        """
        if not self.file.is_file():
            return 0
        try:
            return _progress(read_tensors(self.file))["step"]
        except Exception as error:
            raise self._unusable(error) from error

    def last_good(self, unit: str) -> str:
        """What a training that has diverged can be looked at by: its last save, which held finite losses only."""
        step = self.steps_done()
        if step == 0:
            return "nothing was saved before"
        return f"the last good checkpoint is that of {unit} {step}: {self.file}"

    def _unusable(self, error: Exception) -> UserError:
        reason = (str(error).removeprefix(f"{self.file}: ").splitlines() or [type(error).__name__])[0]
        return UserError(f"{self.file}: cannot go on from this state ({reason}); delete it to train from the start")


def _require_alike(before: Any, after: Any, name: str) -> None:
    """Refuse a state whose parts are of other kinds or shapes than those that the training began with.

    What began as None, or as an empty list or dictionary, grows while it trains.
    """
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        sound = before.shape == after.shape and before.dtype == after.dtype
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        sound = before.keys() <= after.keys()
        for key in before if sound else ():
            _require_alike(before[key], after[key], f"{name}.{key}")
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple):
        sound = not before or len(before) == len(after)
        for i, pair in enumerate(zip(before, after, strict=False)):
            _require_alike(*pair, f"{name}[{i}]")
    else:
        numbers = all(type(value) in (int, float) for value in (before, after))
        sound = before is None or numbers or type(before) is type(after)
    if not sound:
        raise ValueError(f"{name} is of another kind or shape")


def _keep_options(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    """Its rates and decays come from the settings, as at the start, and not from a file."""
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group |= {name: value for name, value in own.items() if name != "params"}


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Adam has no moments before its first step; then they are a count, and tensors like the parameter."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.shape not in (parameter.shape, torch.Size()):
                raise ValueError(f"{name} of the optimizer is not like its parameter")
            if name == "step" and not (value.numel() == 1 and 0 <= value.item() < float("inf")):
                raise ValueError(f"step of the optimizer is {value.flatten()[:1].tolist()}, no number of steps")


def _progress(content: Any) -> dict[str, Any]:
    progress = content["progress"]
    if type(progress["step"]) is not int or progress["step"] < 0:
        raise ValueError("its step is no number of steps")
    return progress


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where and how a training runs.

    Attributes:
        resume: where its last state is kept, and gone on from if there is one; None keeps none.
    """

    seed: int
    device: torch.device
    logger: logging.Logger
    writer: ScalarWriter
    resume: Resume | None = None


_SHOWN_ROWS = 8


def diverged(what: str, context: RunContext, *, place: str, rows: np.ndarray, unit: str, advice: str) -> UserError:
    """The error of a training whose numbers are finite no more.

    Args:
        what: such as `loss is nan`; place: the step, such as `epoch 2, step 7`; rows: training rows of it, int [B].
        unit: what `Resume` counts in this training, `epoch` or `step`; advice: what to change.
    """
    named = ", ".join(map(str, rows[:_SHOWN_ROWS].tolist()))
    more = f" and {len(rows) - _SHOWN_ROWS} others" if len(rows) > _SHOWN_ROWS else ""
    kept = context.resume.last_good(unit) if context.resume else "nothing was saved before"
    return UserError(f"training: {what} in {place} (training rows {named}{more}); {kept}; {advice}")
