"""One distillation step of ours against one of the unmodified DLLM2Rec program, in one run; prints one JSON line.

    DLLM2REC_DIR=<checkout of istarryn/DLLM2Rec@b78cc65> python -m benchmarks.kd_step

SASRec, 4,606 items, batch 256, windows of 10, teacher embeddings 4,096 wide, K 10, alpha .5, ed_weight .3, lambda .7,
dropout off. A step is everything from drawing the rows to the update. The first loss is computed from the same
weights, rows and negatives on both sides and has to agree.
"""

import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from upstream import Case, in_upstream, run_upstream

from src.distill.config import DistillConfig
from src.distill.data_bridge import TeacherOutputs
from src.distill.fusion import TeacherTable, fuse_teacher
from src.distill.selection_policy import SelectionPolicyAll
from src.distill.trainer_distill import DistillObjective
from src.student import objectives
from src.student.config import ModelConfig
from src.student.models import build_model

NUM_ITEMS, WINDOW, NUM_ROWS, BATCH_SIZE, TOP_K, WIDTH, LLM_DIM = 4606, 10, 5120, 256, 10, 64, 4096
STEPS, WARM_UP = 12, 2
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


def our_steps(case: Case, first) -> tuple[float, list[float]]:  # type: ignore[no-untyped-def]
    """The first loss from upstream's weights, rows and negatives; then the seconds of each of our steps."""
    options = {"loss": "bce_dros", "candidate_loss": "official", "alpha": 0.5, "ed_weight": 0.3, "kd_weight": 0.7}
    settings = DistillConfig(name="dllm2rec_official", top_k=TOP_K, **options)
    model = build_model(ModelConfig("sasrec", NUM_ITEMS, WIDTH, WIDTH, WINDOW, 0.0))
    fuse_teacher(
        model,
        TeacherTable(case.teacher.embeddings, "float32", CPU),
        torch.nn.Linear(LLM_DIM, WIDTH),
        settings.ed_weight,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(in_upstream(first.weights, name, parameter.shape))
    data = SimpleNamespace(num_items=NUM_ITEMS, train=SimpleNamespace(targets=case.target))
    loss_settings = objectives.LossSettings("bce_dros", dros_weight=settings.alpha)
    base = objectives.BaseLoss(loss_settings, data, max_seq_len=WINDOW, seed=1, device=CPU)
    objective = DistillObjective(settings=settings, base_loss=base, policy=SelectionPolicyAll(), outputs=case.teacher)

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
    case = make_case()
    options = {"batch_size": BATCH_SIZE, "alpha": 0.5, "ed_weight": 0.3, "lam": 0.7}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        where = Path(folder) / "run"
        steps = run_upstream(Path(os.environ["DLLM2REC_DIR"]), case, "sasrec", options, where, STEPS)
    loss, seconds = our_steps(case, steps[0])
    theirs = statistics.median(step.seconds for step in steps[WARM_UP:])
    ours = statistics.median(seconds[WARM_UP:])
    result = {
        "upstream_ms": round(1000 * theirs, 1),
        "ours_ms": round(1000 * ours, 1),
        "ratio": round(theirs / ours, 1),
    }
    relative = abs(loss - steps[0].losses["total"]) / steps[0].losses["total"]
    result["ratio"] = round(theirs / ours, 1)
    print(json.dumps({**result, "threads": torch.get_num_threads(), "loss_difference": float(f"{relative:.1e}")}))


if __name__ == "__main__":
    main()
