"""Choice of the device, with CUDA made up."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

from src.core.device import keep_freed_memory, resolve_device, within_memory
from src.core.errors import UserError


@pytest.fixture
def cuda(monkeypatch):
    """Make PyTorch see so many CUDA devices."""

    def set_count(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return set_count


def test_cpu(logger, caplog, cuda):
    cuda(0)
    assert resolve_device("cpu", logger) == torch.device("cpu")
    assert caplog.records == []


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_fallback_warns_once(logger, caplog, cuda, name):
    cuda(0)

    assert resolve_device(name, logger) == torch.device("cpu")

    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, f"general.device={name}, but PyTorch sees no CUDA here: running on the CPU")
    ]


def test_cuda_that_exists(logger, caplog, cuda):
    cuda(2)
    assert resolve_device("cuda:1", logger) == torch.device("cuda:1")
    assert resolve_device("cuda", logger).type == "cuda"
    assert caplog.records == []


def test_impossible_index(logger, cuda):
    cuda(2)
    with pytest.raises(UserError, match=r"general.device=cuda:2: this machine has 2 CUDA device.*from 0 to 1, or cpu"):
        resolve_device("cuda:2", logger)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "cuda:x"])
def test_no_device(logger, cuda, name):
    cuda(2)
    with pytest.raises(UserError, match=f"general.device={name}: not a device; use cpu, cuda or cuda:<index>"):
        resolve_device(name, logger)


def test_unsupported_device(logger, cuda):
    cuda(0)
    with pytest.raises(UserError, match="general.device=mps: only cpu and cuda:<index> are supported"):
        resolve_device("mps", logger)


FAULTS = """
import resource, sys, torch
from src.core.device import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else False)
faults = []
for _ in range(60):  # 80 MB, freed at once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20 * 2**20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before > 1000)
print(sum(faults[-20:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    def faults(way: str) -> tuple[str, int]:
        done = subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True)
        can, count = done.stdout.split()
        return can, int(count)

    can, kept = faults("kept")
    if can == "False":
        pytest.skip("this C library has no mallopt")
    assert (kept, faults("given back")[1]) == (0, 20)


def test_elsewhere_memory_is_left_to_the_system(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def of_a_gpu():
    raise torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB"
    )


@pytest.mark.parametrize(
    "allocate, asked",
    [
        (of_a_gpu, r"\(2\.50 GiB more were asked for\)"),
        (lambda: torch.empty(2**50), r"\(4,194,304\.00 GiB more were asked for\)"),
        (lambda: np.empty(2**50), r"\(8\.00 PiB more were asked for\)"),
    ],
)
def test_too_little_memory(allocate, asked):
    with (
        pytest.raises(UserError, match=rf"x=1: the memory does not suffice {asked}; lower x"),
        within_memory("x=1", "lower x"),
    ):
        allocate()


def test_other_errors_are_not_taken_for_too_little_memory():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), within_memory("x=1", "lower x"):
        torch.ones(2, 3) @ torch.ones(2, 3)
