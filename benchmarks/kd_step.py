"""One distillation step of ours against one of the unmodified DLLM2Rec program, in one run; prints one JSON line.

    DLLM2REC_DIR=<checkout of istarryn/DLLM2Rec@b78cc65> python -m benchmarks.kd_step

SASRec, 4,606 items, batch 256, windows of 10, teacher embeddings 4,096 wide, K 10, alpha .5, ed_weight .3, lambda .7,
dropout off. A step is everything from drawing the rows to the update. The first loss is computed from the same
weights, rows and negatives on both sides and has to agree. `whitened` is our step with a table of 256 columns, as
`distill.embedding_transform=whiten distill.embedding_dims=256` makes it once, against the same step of upstream's.
Rounds of the two alternate with upstream's steps between them. Upstream's program has a process of its own, so that
what ours sets for a process (the memory that it keeps) is not set for it.
"""

import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from upstream import Case, Step, in_upstream, run_upstream

from src.core.device import keep_freed_memory
from src.distill.config import DistillConfig
from src.distill.data_bridge import TeacherOutputs
from src.distill.fusion import TeacherTable, fuse_teacher
from src.distill.selection_policy import SelectionPolicyAll
from src.distill.trainer_distill import DistillObjective
from src.student import objectives
from src.student.config import ModelConfig
from src.student.models import build_model

NUM_ITEMS, WINDOW, NUM_ROWS, BATCH_SIZE, TOP_K, WIDTH, LLM_DIM = 4606, 10, 5120, 256, 10, 64, 4096
STEPS, WARM_UP, ROUNDS, WHITENED = 8, 2, 3, 256
CPU = torch.device("cpu")


def make_case() -> Case:
    random = np.random.default_rng(0)
    history = random.integers(NUM_ITEMS, size=(NUM_ROWS, WINDOW))
    length = random.integers(1, WINDOW + 1, NUM_ROWS)
    history[np.arange(WINDOW) >= length[:, None]] = NUM_ITEMS
    target = random.integers(NUM_ITEMS, size=NUM_ROWS)
    ranking = np.stack([random.choice(NUM_ITEMS, TOP_K, replace=False) for _ in range(NUM_ROWS)])
    confidence = np.sort(random.random((NUM_ROWS, TOP_K)), axis=1).astype(np.float32)
    embeddings = torch.randn(NUM_ITEMS, LLM_DIM, generator=torch.Generator().manual_seed(0)) * 0.1
    teacher = TeacherOutputs(
        embeddings=embeddings, ranking=torch.from_numpy(ranking), confidence=torch.from_numpy(confidence)
    )
    return Case(NUM_ITEMS, *map(torch.from_numpy, (history, length, target)), teacher)


def their_steps(case: Case) -> tuple[Step, list[float]]:
    """Upstream's first step, and the seconds of each."""
    options = {"batch_size": BATCH_SIZE, "alpha": 0.5, "ed_weight": 0.3, "lam": 0.7}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        steps = run_upstream(Path(os.environ["DLLM2REC_DIR"]), case, "sasrec", options, Path(folder) / "run", STEPS)
    return steps[0], [step.seconds for step in steps]


def our_steps(case: Case, first: Step | None = None) -> tuple[float, list[float]]:
    """The seconds of each of our steps; before that, where it is given, the loss of upstream's first step, else 0."""
    options = {"loss": "bce_dros", "candidate_loss": "official", "alpha": 0.5, "ed_weight": 0.3, "kd_weight": 0.7}
    settings = DistillConfig(name="dllm2rec_official", top_k=TOP_K, **options)
    model = build_model(ModelConfig("sasrec", NUM_ITEMS, WIDTH, WIDTH, WINDOW, 0.0))
    table = TeacherTable(case.teacher.embeddings, "float32", CPU)
    fuse_teacher(model, table, torch.nn.Linear(table.width, WIDTH), settings.ed_weight)
    data = SimpleNamespace(num_items=NUM_ITEMS, train=SimpleNamespace(targets=case.target))
    loss_settings = objectives.LossSettings("bce_dros", dros_weight=settings.alpha)
    base = objectives.BaseLoss(loss_settings, data, max_seq_len=WINDOW, seed=1, device=CPU)
    objective = DistillObjective(settings=settings, base_loss=base, policy=SelectionPolicyAll(), outputs=case.teacher)

    loss = 0.0
    if first is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(in_upstream(first.weights, name, parameter.shape))
        sample, objectives.sample_negatives = objectives.sample_negatives, lambda *args: first.negatives
        loss = objective(model, case.batch(first.rows))[0].item()
        objectives.sample_negatives = sample

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    seconds = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        objective(model, case.batch(torch.randperm(NUM_ROWS)[:BATCH_SIZE]))[0].backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    return loss, seconds


def main() -> None:
    if "DLLM2REC_DIR" not in os.environ:
        raise SystemExit("set DLLM2REC_DIR to a checkout of istarryn/DLLM2Rec@b78cc65")
    keep_freed_memory()
    case = make_case()
    narrow = replace(case, teacher=replace(case.teacher, embeddings=case.teacher.embeddings[:, :WHITENED].clone()))
    theirs, ours, whitened = [], [], []
    for _ in range(ROUNDS):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            first, seconds = process.submit(their_steps, case).result()
        theirs += seconds[WARM_UP:]
        loss, seconds = our_steps(case, first)
        ours += seconds[WARM_UP:]
        whitened += our_steps(narrow)[1][WARM_UP:]
    upstream_ms, ours_ms, whitened_ms = (1000 * statistics.median(found) for found in (theirs, ours, whitened))
    result = {
        "upstream_ms": round(upstream_ms, 1),
        "ours_ms": round(ours_ms, 1),
        "ratio": round(upstream_ms / ours_ms, 1),
        "whitened_ms": round(whitened_ms, 1),
        "whitened_ratio": round(upstream_ms / whitened_ms, 1),
    }
    relative = abs(loss - first.losses["total"]) / first.losses["total"]
    print(json.dumps({**result, "threads": torch.get_num_threads(), "loss_difference": float(f"{relative:.1e}")}))


if __name__ == "__main__":
    main()
