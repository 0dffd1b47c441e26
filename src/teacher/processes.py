"""Several processes that work as one, each with a GPU of its own (`accelerate launch`); usually there is one.

Adapter, router and projector are small, so their gradients are summed once per step and the LM needs no wrapper.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor


def state(device: torch.device | None = None) -> PartialState:
    """Number of processes and number of this one; `device` decides how they communicate, at the first call."""
    # One process prepares for hours while the others wait.
    return PartialState(cpu=device is not None and device.type == "cpu", timeout=timedelta(days=1))


def broadcast(task: str) -> None:
    """Send what there is to do, "" for nothing, from the main process to the others, which `receive` it."""
    if state().num_processes > 1:
        broadcast_object_list([task])


def receive() -> str:
    """Wait for what the main process broadcasts."""
    task = [""]
    broadcast_object_list(task)
    return task[0]


def reduce_sum(values: list[float], device: torch.device) -> list[float]:
    """Each value's sum over the processes."""
    if state().num_processes == 1:
        return values
    return reduce(torch.tensor(values, dtype=torch.float64, device=device), "sum").tolist()


def reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum every gradient over the processes; one that no process has stays None, so that Adam leaves it alone."""
    parameters = list(parameters)
    if state().num_processes == 1:
        return
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    used = [p for p, count in zip(parameters, reduce(has, "sum").tolist(), strict=True) if count > 0]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in used])
    for p, total in zip(used, reduce(flat, "sum").split([p.numel() for p in used]), strict=True):
        p.grad = total.view_as(p).to(p.dtype)


def gather(values: list[Any]) -> list[Any]:
    """All processes' lists, one after another, in every process."""
    return gather_object(values) if state().num_processes > 1 else values


def share(count: int) -> slice:
    """Which of `count` things this process takes: every n-th, so that long and short ones are spread."""
    return slice(state().process_index, count, state().num_processes)
