"""Shared hand-made inputs: tiny data sets, weights without a seed, the unmodified upstream program."""

import gc
import hashlib
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from src.core.data_utils import Rows, SequenceDataset
from src.core.errors import UserError
from src.distill.dllm2rec_wrapper import find_program
from src.student.context import RunContext
from src.teacher.adapter.ilora_submodule import COMMIT, FOLDER_VARIABLE, find_code, is_pinned


def pytest_runtest_setup() -> None:
    """What is there stays: collecting garbage, as transformers does after each model, need not look at it."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on many threads, and sums in another order would not repeat bit for bit."""
    torch.set_num_threads(1)


@pytest.fixture
def logger() -> logging.Logger:
    """A logger that `caplog` hears."""
    return logging.getLogger("tests")


class Recorder:
    """A TensorBoard writer that keeps what it is told."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value, global_step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def tb_writer() -> Recorder:
    return Recorder()


@pytest.fixture
def context(logger, tb_writer) -> RunContext:
    """On the CPU with seed 7, nothing is resumed."""
    return RunContext(seed=7, device=torch.device("cpu"), logger=logger, writer=tb_writer)


def _fill_with_ramp(module: nn.Module, scale: float = 0.4) -> nn.Module:
    """Every floating parameter: scale * sin(1.7 i), i counting through the module.

    No seed decides what is tested, no two weights are equal, and biases are not zero.
    """
    begin = 1
    with torch.no_grad():
        for parameter in module.parameters():
            ramp = torch.arange(begin, begin + parameter.numel(), dtype=torch.float64)
            parameter.copy_((scale * torch.sin(1.7 * ramp)).reshape(parameter.shape))
            begin += parameter.numel()
    return module


@pytest.fixture(scope="session")
def fill_with_ramp() -> Callable[..., nn.Module]:
    return _fill_with_ramp


def _make_rows(sequences: list[list[int]], splits: list[list[tuple[int, int]]]) -> list[Rows]:
    """One `Rows` per split; a row is (sequence, place of its target in it)."""
    items = np.array([item for sequence in sequences for item in sequence], dtype=np.int32)
    bounds = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    return [
        Rows(items, bounds, np.array([bounds[user] + place for user, place in split], dtype=np.int64))
        for split in splits
    ]


def _make_dataset(
    sequences: list[list[int]],
    num_items: int,
    max_seq_len: int = 5,
    name: str = "tiny",
    titles: list[str] | None = None,
) -> SequenceDataset:
    """Leave-one-out by hand: last item to test, the one before to validate, the others to train."""
    users = range(len(sequences))
    train = [(user, place) for user in users for place in range(1, len(sequences[user]) - 2)]
    valid = [(user, len(sequences[user]) - 2) for user in users]
    test = [(user, len(sequences[user]) - 1) for user in users]
    return SequenceDataset(
        name,
        num_items,
        len(sequences),
        titles or [f"Title {item}" for item in range(num_items)],
        [str(item) for item in range(num_items)],
        max_seq_len,
        *_make_rows(sequences, [train, valid, test]),
        fingerprint=hashlib.sha256(repr((name, num_items, sequences)).encode()).hexdigest(),
    )


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., SequenceDataset]:
    return _make_dataset


@pytest.fixture(scope="session")
def tiny_dataset() -> SequenceDataset:
    """8 users who walk round a circle of 12 items by steps of 1 or 5, 7 items each: 32 training rows."""
    steps = [1, 5]
    sequences = [[(3 * user + steps[user % 2] * place) % 12 for place in range(7)] for user in range(8)]
    return _make_dataset(sequences, num_items=12)


@pytest.fixture(scope="session")
def dllm2rec_folder() -> Path:
    """The unmodified upstream program, checked by hash."""
    try:
        return find_program()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def ilora_folder() -> Path:
    """The unmodified iLoRA, checked by the hash of its files."""
    folder = find_code()
    if folder is None:
        pytest.skip(f"iLoRA is not checked out; set {FOLDER_VARIABLE} to a checkout of AkaliKong/iLoRA@{COMMIT}")
    assert is_pinned(folder), f"{folder}: not the unmodified AkaliKong/iLoRA@{COMMIT}"
    return folder


@pytest.fixture
def upstream_dllm2rec(dllm2rec_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The unmodified `main.py` as a module; its training stands under `__main__` and does not run."""
    names = ("main", "utility", "SASRecModules_ori")
    before = {name: sys.modules.pop(name, None) for name in names}
    monkeypatch.syspath_prepend(str(dllm2rec_folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        yield importlib.import_module("main")
    finally:
        for name in names:
            sys.modules.pop(name, None)
            if before[name] is not None:
                sys.modules[name] = before[name]
