"""Our training steps beside those of the unmodified DLLM2Rec program.

The program runs as it is, through `runpy`, on files in its own formats; recorders around `DataFrame.sample`,
`torch.multinomial` and `Adam.step` note the rows, the negatives and, before each step, weights, gradients and losses.
"""

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from upstream import STUDENTS, in_upstream

from src.distill.data_bridge import TeacherOutputs
from src.distill.fusion import fuse_teacher
from src.distill.selection_policy import SelectionPolicyAll
from src.distill.trainer_distill import DistillConfig, DistillObjective
from src.student import objectives
from src.student.datamodule import Batch
from src.student.models import ModelConfig, Student, build_model
from src.student.objectives import BaseLoss

CPU = torch.device("cpu")
NUM_ITEMS, WINDOW, NUM_ROWS, BATCH_SIZE, TOP_K, WIDTH = 60, 10, 1696, 32, 10, 64
UPSTREAM_NAMES = {"sasrec": "SASRec", "gru4rec": "GRU", "caser": "Caser"}


@dataclass(frozen=True)
class Step:
    """What upstream did in one step; weights and gradients are those before it, losses are named as there."""

    rows: torch.Tensor
    negatives: torch.Tensor
    weights: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    losses: dict[str, float]


@dataclass(frozen=True)
class Case:
    """The data that both sides see."""

    history: torch.Tensor
    length: torch.Tensor
    target: torch.Tensor
    teacher: TeacherOutputs

    def batch(self, rows: torch.Tensor) -> Batch:
        return Batch(rows, self.history[rows], self.length[rows], self.target[rows])


def make_case() -> Case:
    random = np.random.default_rng(0)
    length = random.integers(1, WINDOW + 1, NUM_ROWS)
    history = np.full((NUM_ROWS, WINDOW), NUM_ITEMS)
    for row, count in enumerate(length):
        history[row, :count] = random.integers(NUM_ITEMS, size=count)
    target = (history[np.arange(NUM_ROWS), length - 1] * 7 + random.integers(3, size=NUM_ROWS)) % NUM_ITEMS
    ranking = np.stack([random.permutation(NUM_ITEMS)[: TOP_K + 2] for _ in range(NUM_ROWS)])
    confidence = np.sort(random.random((NUM_ROWS, TOP_K + 2)), axis=1).astype(np.float32)
    embeddings = torch.from_numpy(random.normal(0, 0.1, (NUM_ITEMS, 4096)).astype(np.float32))
    tensors = (torch.from_numpy(array) for array in (ranking[:, :TOP_K], confidence[:, :TOP_K]))
    return Case(*map(torch.from_numpy, (history, length, target)), TeacherOutputs(embeddings, *tensors, None))


def write_upstream_files(case: Case, folder: Path) -> None:
    data, teacher = folder / "data" / "toy", folder / "tocf" / "toy"
    data.mkdir(parents=True)
    teacher.mkdir(parents=True)
    pd.DataFrame({"seq_size": [WINDOW], "item_num": [NUM_ITEMS]}).to_pickle(data / "data_statis.df")
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
    while not {"parse_args", "train_data", "model"} & frame.f_globals.keys() >= {"parse_args", "model"}:
        frame = frame.f_back
    return frame.f_globals


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Step]]:
    steps: list[Step] = []
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

    @torch.no_grad()
    def ramping_start(optimizer, *args, **kwargs):
        """With LayerNorm biases of 0 upstream drops positions at random (UPSTREAM: rounding noise)."""
        for name, parameter in program_globals()["model"].named_parameters():
            if ("ln_" in name or "layer_norm" in name) and name.endswith("bias"):
                parameter.copy_(torch.linspace(0.05, 0.15, len(parameter)))
        start(optimizer, *args, **kwargs)

    def noting_step(optimizer, *args, **kwargs):
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
            )
        )
        return step(optimizer, *args, **kwargs)

    noting_step.hooked = True  # or torch would wrap it
    monkeypatch.setattr(pd.DataFrame, "sample", noting_sample)
    monkeypatch.setattr(torch, "multinomial", noting_multinomial)
    monkeypatch.setattr(torch.optim.Adam, "__init__", ramping_start)
    monkeypatch.setattr(torch.optim.Adam, "step", noting_step)
    yield steps


def run_upstream(folder: Path, case: Case, name: str, options: dict[str, float], where: Path) -> list[Step]:
    """Every step of one epoch of the original program."""
    where.mkdir()
    write_upstream_files(case, where)
    fixed = {"model_name": UPSTREAM_NAMES[name], "data": "toy", "batch_size": BATCH_SIZE, "epoch": 1, "dropout_rate": 0}
    arguments = [word for key, value in {**fixed, **options}.items() for word in (f"--{key}", str(value))]
    before = os.getcwd(), sys.argv, list(sys.path), os.environ.get("CUDA_VISIBLE_DEVICES")
    modules = {m: sys.modules.pop(m, None) for m in ("utility", "SASRecModules_ori")}
    with pytest.MonkeyPatch.context() as monkeypatch, recorded(monkeypatch) as steps:
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


def ours(case: Case, name: str, options: dict[str, float]) -> tuple[Student, DistillObjective]:
    settings = DistillConfig(
        "dllm2rec_official",
        alpha=options["alpha"],
        ed_weight=options["ed_weight"],
        kd_weight=options["lam"],
        top_k=TOP_K,
        loss="bce_dros",
        candidate_loss="official",
    )
    model = build_model(ModelConfig(name, NUM_ITEMS, WIDTH, WIDTH, WINDOW, 0.0))
    if settings.needs_embeddings:
        fuse_teacher(model, case.teacher.embeddings, torch.nn.Linear(4096, WIDTH), settings.ed_weight)
    student = SimpleNamespace(loss="ce", loss_settings=lambda: objectives.LossSettings("ce"))
    data = SimpleNamespace(num_items=NUM_ITEMS, train=SimpleNamespace(targets=case.target))
    base = BaseLoss(settings.loss_settings(student), data, WINDOW, 1, CPU)
    return model, DistillObjective(settings, base, SelectionPolicyAll(), case.teacher, None)


@torch.no_grad()
def load(model: Student, weights: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(in_upstream(weights, name, parameter.shape))


README = {"alpha": 0.5, "ed_weight": 0.3, "lam": 0.7}
CASES = [
    *[(name, README) for name in STUDENTS],
    ("sasrec", {"alpha": 0.0, "ed_weight": 0.0, "lam": 0.0}),
    ("sasrec", {"alpha": 0.0, "ed_weight": 0.3, "lam": 0.7}),
    ("sasrec", {"alpha": 1.0, "ed_weight": 0.0, "lam": 0.0}),
]


@pytest.mark.parametrize("name, options", CASES)
def test_steps_of_the_original_program(dllm2rec_folder, tmp_path, monkeypatch, name, options):
    case = make_case()
    steps = run_upstream(dllm2rec_folder, case, name, options, tmp_path / "upstream")
    assert len(steps) >= 50
    forced: list[torch.Tensor] = []
    monkeypatch.setattr(objectives, "sample_negatives", lambda *args: forced[-1])

    # From upstream's weights in each step.
    model, objective = ours(case, name, options)
    for step in steps:
        load(model, step.weights)
        forced.append(step.negatives)
        model.zero_grad(set_to_none=True)
        loss, parts = objective(model, case.batch(step.rows))
        loss.backward()
        found = {"base": parts["loss_bce"], "dros": parts.get("loss_dros"), "ranking": parts.get("loss_ranking")}
        found = {key: value.item() for key, value in {**found, "total": loss}.items() if value is not None}
        assert found == pytest.approx(step.losses, rel=1e-5)
        # Some gradients are zero but for rounding (a key's bias shifts all scores alike): allow float32's noise, too.
        noise = 5e-7 * torch.stack([gradient.norm() for gradient in step.gradients.values()]).norm()
        for parameter_name, parameter in model.named_parameters():
            theirs = in_upstream(step.gradients, parameter_name, parameter.shape)
            assert (parameter.grad - theirs).norm() <= 1e-5 * theirs.norm() + noise, parameter_name

    # Running freely from the first weights.
    load(model, steps[0].weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in steps:
        forced.append(step.negatives)
        optimizer.zero_grad()
        loss, _ = objective(model, case.batch(step.rows))
        loss.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(step.losses["total"], abs=1e-3)
    assert steps[-1].losses["total"] < steps[0].losses["total"] - 1e-2  # it did learn something
