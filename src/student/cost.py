"""What a trained model costs to use: parameters and the time of one answer."""

import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from src.core.files import write_json
from src.core.foreign.typed import read_typed


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """All parameters and those that training changes."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def answer_latency(answer: Callable[[int], object], count: int, device: torch.device) -> dict[str, object]:
    """Median time of `answer(i)` for i in 1 .. count - 1, one at a time; the call for 0 warms up.

    Returns:
        `latency_ms`, `latency_users` (the number timed) and `latency_device`.
    """
    seconds = []
    for i in range(count):
        begin = time.perf_counter()
        answer(i)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # kernels run on after the call has returned
        seconds.append(time.perf_counter() - begin)
    timed = seconds[1:] or seconds
    return {"latency_ms": 1000 * median(timed), "latency_users": len(timed), "latency_device": device_name(device)}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the number of threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # Linux, where platform.processor() knows nothing
    named = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.is_file() else None
    return named[1] if named else platform.processor() or "CPU"


def record_cost(path: Path, name: str, cost: dict[str, object]) -> None:
    """Merge one model's cost into `metrics/cost.json`."""
    before = read_typed(path, dict[str, Any], "delete it") if path.is_file() else {}
    write_json(path, before | {name: cost})
