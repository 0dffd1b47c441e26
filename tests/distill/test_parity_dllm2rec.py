"""Our training steps beside those of the unmodified DLLM2Rec program."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from upstream import STUDENTS, Case, in_upstream, run_upstream

from src.distill.config import DistillConfig
from src.distill.data_bridge import TeacherOutputs
from src.distill.fusion import TeacherTable, fuse_teacher
from src.distill.selection_policy import SelectionPolicyAll
from src.distill.trainer_distill import DistillObjective
from src.student import objectives
from src.student.config import ModelConfig, SASRecConfig
from src.student.models import Student, build_model
from src.student.objectives import BaseLoss

CPU = torch.device("cpu")
NUM_ITEMS, WINDOW, NUM_ROWS, BATCH_SIZE, TOP_K, WIDTH = 60, 10, 1696, 32, 10, 64


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
    teacher = TeacherOutputs(embeddings=embeddings, ranking=next(tensors), confidence=next(tensors))
    return Case(NUM_ITEMS, *map(torch.from_numpy, (history, length, target)), teacher)


def ours(case: Case, name: str, options: dict[str, float]) -> tuple[Student, DistillObjective]:
    settings = DistillConfig(
        name="dllm2rec_official",
        alpha=options["alpha"],
        ed_weight=options["ed_weight"],
        kd_weight=options["lam"],
        top_k=TOP_K,
        loss="bce_dros",
        candidate_loss="official",
    )
    model = build_model(ModelConfig(name, NUM_ITEMS, WIDTH, WIDTH, WINDOW, 0.0))
    if settings.needs_embeddings:
        fuse_teacher(
            model,
            TeacherTable(case.teacher.embeddings, "float32", torch.device("cpu")),
            torch.nn.Linear(4096, WIDTH),
            settings.ed_weight,
        )
    student = settings.as_student(SASRecConfig(name="sasrec"))
    data = SimpleNamespace(num_items=NUM_ITEMS, train=SimpleNamespace(targets=case.target))
    base = BaseLoss(student.loss_settings(), data, max_seq_len=WINDOW, seed=1, device=CPU)
    objective = DistillObjective(settings=settings, base_loss=base, policy=SelectionPolicyAll(), outputs=case.teacher)
    return model, objective


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
    steps = run_upstream(dllm2rec_folder, case, name, {"batch_size": BATCH_SIZE, **options}, tmp_path / "upstream")
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
