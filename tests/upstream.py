"""DLLM2Rec's models and program beside ours.

Its weights are copied into our parameters. The program runs as it is, through `runpy`, on files in its own formats;
recorders around `DataFrame.sample`, `torch.multinomial` and `Adam.step` note the rows, the negatives and, before each
step, weights, gradients and losses.
"""

import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from src.distill.data_bridge import TeacherOutputs
from src.student.config import ModelConfig
from src.student.datamodule import Batch
from src.student.models import Student, build_model

STUDENTS = ("sasrec", "gru4rec", "caser")
_NAMES = {
    "position_embeddings": "positional_embeddings",
    "blocks.0.norm_attention": "ln_1",
    "blocks.0.norm_feed_forward": "ln_2",
    "norm_output": "ln_3",
    "blocks.0.attention.query": "mh_attn.linear_q",
    "blocks.0.attention.key": "mh_attn.linear_k",
    "blocks.0.attention.value": "mh_attn.linear_v",
    "blocks.0.inner": "feed_forward.w_1",
    "blocks.0.outer": "feed_forward.w_2",
    "blocks.0.norm_block": "feed_forward.layer_norm",
    "vertical": "vertical_cnn",
    "output": "s_fc",
    "item_embeddings.items": "item_embeddings",
    "item_embeddings.projection": "fc_4096_64",
}


def build_upstream(program: ModuleType, name: str, hidden: int, num_items: int, window: int) -> torch.nn.Module:
    """Upstream's model of that name; `window` is its state_size."""
    if name == "sasrec":
        return program.SASRec(hidden, num_items, window, 0.1, torch.device("cpu"))
    if name == "gru4rec":
        return program.GRU(hidden, num_items, window)
    return program.Caser(hidden, num_items, window, 16, "[2, 3, 4]", 0.1)


def in_upstream(
    state: dict[str, torch.Tensor], ours: str, shape: torch.Size, write: torch.Tensor | None = None
) -> torch.Tensor:
    """What upstream holds (a weight, a gradient) under our parameter's name, in our shape; `write` replaces it."""
    module, leaf = ours.rsplit(".", 1)
    module = _NAMES.get(module, module.replace("horizontal", "horizontal_cnn"))
    source = state[f"{module}.{leaf}"]
    if module.startswith("horizontal_cnn") and leaf == "weight":
        source = source[:, 0].transpose(1, 2)  # [filters, 1, size, d]: theirs are 2-d filters of full width
    if write is not None:
        source.copy_(write.reshape(source.shape))
    return source.reshape(shape)  # their linear maps are convolutions


@torch.no_grad()
def copy_weights(upstream: torch.nn.Module, name: str, num_items: int, window: int) -> Student:
    """Our model with upstream's weights, dropout off."""
    hidden = upstream.hidden_size
    model = build_model(ModelConfig(name, num_items, hidden, hidden, window, 0.1)).eval()
    for ours, parameter in model.named_parameters():
        parameter.copy_(in_upstream(upstream.state_dict(), ours, parameter.shape))
    return model


# --- running the program itself ------------------------------------------------------------------------------

_PROGRAM_NAMES = {"sasrec": "SASRec", "gru4rec": "GRU", "caser": "Caser"}


@dataclass(frozen=True)
class Step:
    """What upstream did in one step; weights and gradients are those before its update, seconds since the last one."""

    rows: torch.Tensor
    negatives: torch.Tensor
    weights: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    losses: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Case:
    """The data that both sides see."""

    num_items: int
    history: torch.Tensor
    length: torch.Tensor
    target: torch.Tensor
    teacher: TeacherOutputs

    def batch(self, rows: torch.Tensor) -> Batch:
        return Batch(rows, self.history[rows], self.length[rows], self.target[rows])


def write_upstream_files(case: Case, folder: Path) -> None:
    data, teacher = folder / "data" / "toy", folder / "tocf" / "toy"
    data.mkdir(parents=True)
    teacher.mkdir(parents=True)
    pd.DataFrame({"seq_size": [case.history.shape[1]], "item_num": [case.num_items]}).to_pickle(data / "data_statis.df")
    frame = pd.DataFrame({"seq": case.history.tolist(), "len_seq": case.length.tolist(), "next": case.target.tolist()})
    frame.to_pickle(data / "train_data.df")
    for name in ("val_data.csv", "test_data.csv"):
        frame[:40].to_csv(data / name)
    np.savetxt(teacher / "myrank_train.txt", case.teacher.ranking.numpy(), fmt="%d")
    np.savetxt(teacher / "confidence_train.txt", case.teacher.confidence.numpy(), fmt="%.9g")
    torch.save(case.teacher.embeddings, teacher / "all_embeddings.pt")


def program_globals() -> dict:
    """The globals of the running program, found up the stack."""
    frame = sys._getframe(1)
    while not {"parse_args", "model"} <= frame.f_globals.keys():
        frame = frame.f_back
    return frame.f_globals


Start = Callable[[torch.nn.Module], None]


@torch.no_grad()
def ramp_norm_biases(model: torch.nn.Module) -> None:
    """With LayerNorm biases of 0 upstream drops positions at random (UPSTREAM: rounding noise)."""
    for name, parameter in model.named_parameters():
        if ("ln_" in name or "layer_norm" in name) and name.endswith("bias"):
            parameter.copy_(torch.linspace(0.05, 0.15, len(parameter)))


def known_weight(name: str, shape: torch.Size) -> torch.Tensor:
    """Weights that need no file: of our parameter `name`, .1 sin(1.7 i + length of the name)."""
    ramp = torch.arange(1, shape.numel() + 1, dtype=torch.float64)
    return (0.1 * torch.sin(1.7 * ramp + len(name))).float().reshape(shape)


@torch.no_grad()
def give_known_weights(upstream: torch.nn.Module, ours: torch.nn.Module) -> None:
    """Write `known_weight` into upstream's parameters, where ours has them."""
    state = dict(upstream.named_parameters())
    for name, parameter in ours.named_parameters():
        in_upstream(state, name, parameter.shape, write=known_weight(name, parameter.shape))


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch, max_steps: int | None, begin_with: Start) -> Iterator[list[Step]]:
    steps: list[Step] = []
    begin = [time.perf_counter()]
    drawn: dict[str, torch.Tensor] = {}
    sample, multinomial = pd.DataFrame.sample, torch.multinomial
    start, step = torch.optim.Adam.__init__, torch.optim.Adam.step

    def noting_sample(frame, *args, **kwargs):
        result = sample(frame, *args, **kwargs)
        drawn["rows"] = torch.tensor(result.index.to_numpy())
        return result

    def noting_multinomial(*args, **kwargs):
        drawn["negatives"] = multinomial(*args, **kwargs)
        return drawn["negatives"]

    def noting_start(optimizer, *args, **kwargs):
        begin_with(program_globals()["model"])
        start(optimizer, *args, **kwargs)

    def noting_step(optimizer, *args, **kwargs):
        seconds = time.perf_counter() - begin[0]
        program = program_globals()
        named = dict(program["model"].named_parameters())
        names = {"loss": "base", "loss_dro": "dros", "loss_all_rd": "ranking", "loss_all": "total"}
        steps.append(
            Step(
                drawn["rows"],
                drawn["negatives"].flatten(),
                {name: parameter.detach().clone() for name, parameter in named.items()},
                {name: p.grad.clone() for name, p in named.items() if p.grad is not None},
                {ours: float(program[theirs].mean()) for theirs, ours in names.items() if theirs in program},
                seconds,
            )
        )
        if len(steps) == max_steps:
            raise SystemExit(0)
        begin[0] = time.perf_counter()
        step(optimizer, *args, **kwargs)

    noting_step.hooked = True  # or torch would wrap it
    monkeypatch.setattr(pd.DataFrame, "sample", noting_sample)
    monkeypatch.setattr(torch, "multinomial", noting_multinomial)
    monkeypatch.setattr(torch.optim.Adam, "__init__", noting_start)
    monkeypatch.setattr(torch.optim.Adam, "step", noting_step)
    yield steps


def run_upstream(
    folder: Path,
    case: Case,
    name: str,
    options: dict[str, float],
    where: Path,
    max_steps: int | None = None,
    begin_with: Start = ramp_norm_biases,
) -> list[Step]:
    """The steps of one epoch of the original program, dropout off; all, or the first `max_steps`."""
    where.mkdir()
    write_upstream_files(case, where)
    fixed = {"model_name": _PROGRAM_NAMES[name], "data": "toy", "epoch": 1, "dropout_rate": 0}
    arguments = [word for key, value in {**fixed, **options}.items() for word in (f"--{key}", str(value))]
    before = os.getcwd(), sys.argv, list(sys.path), os.environ.get("CUDA_VISIBLE_DEVICES")
    modules = {m: sys.modules.pop(m, None) for m in ("utility", "SASRecModules_ori")}
    with pytest.MonkeyPatch.context() as monkeypatch, recorded(monkeypatch, max_steps, begin_with) as steps:
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before[3] or "")
        os.chdir(where)
        sys.argv, sys.path[:0] = ["main.py", *arguments], [str(folder)]
        try:
            runpy.run_path(str(folder / "main.py"), run_name="__main__")
        except SystemExit as end:
            assert not end.code
        finally:
            os.chdir(before[0])
            sys.argv, sys.path[:] = before[1], before[2]
            for module, old in modules.items():
                sys.modules.pop(module, None)
                if old is not None:
                    sys.modules[module] = old
    return steps
