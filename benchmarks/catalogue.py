"""Steps of training on an invented catalogue, loss by loss, and a full ranking: CPU seconds, memory; a JSON line.

    python -m benchmarks.catalogue [--items 300000] [--width 64] [--targets 1024]

SASRec of 2 blocks, windows of 20 with all their targets, tied output, Adam. `memory_mib` is what the process takes
beyond its item table, the table's gradient and Adam's two moments (4 tables); each loss runs in a process of its own.
`whole` is cross-entropy from the scores of the whole batch, `ce` ours. `ranking` is of 512 users against all items,
and what a million users would take at that rate.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.quality import CPU
from src.core.data_utils import Rows, SequenceDataset
from src.student.config import LossSettings, ModelConfig
from src.student.datamodule import Batch
from src.student.evaluator import evaluate_model
from src.student.models import Student, build_model
from src.student.objectives import BaseLoss

LENGTH, STEPS, USERS = 20, 4, 512
LOSSES = ("whole", "ce", "sampled_softmax")


@dataclass(frozen=True)
class Case:
    """One size: items, width of the table, targets of a step."""

    items: int
    width: int
    targets: int

    @property
    def table_mib(self) -> float:
        return (self.items + 1) * self.width * 4 / 2**20


def invented(case: Case) -> SequenceDataset:
    """Histories of LENGTH items and a target, one for each user."""
    random = np.random.default_rng(0)
    users = max(USERS, case.targets // LENGTH)
    items = random.integers(case.items, size=users * (LENGTH + 1)).astype(np.int32)
    bounds = np.arange(users + 1) * (LENGTH + 1)
    rows = Rows(items, bounds, bounds[1:] - 1)
    names = [str(item) for item in range(case.items)]
    return SequenceDataset(
        name="invented",
        num_items=case.items,
        num_users=users,
        titles=names,
        item_ids=names,
        max_seq_len=LENGTH,
        train=rows,
        valid=rows,
        test=rows.select(np.arange(USERS)),
        fingerprint="",
    )


def built(case: Case) -> Student:
    torch.manual_seed(0)
    sizes = {"num_blocks": 2, "norm": "pre", "tied_output": True}
    return build_model(ModelConfig("sasrec", case.items, case.width, case.width, LENGTH, 0.0, **sizes))


def batch_of(case: Case, dataset: SequenceDataset) -> Batch:
    """Windows whose every place but the last has the next one as its target, and the last that of its row."""
    windows = -(-case.targets // LENGTH)
    sequences = torch.from_numpy(dataset.train.items.reshape(-1, LENGTH + 1)[:windows]).long()
    window = torch.arange(windows).repeat_interleave(LENGTH)
    length = torch.arange(1, LENGTH + 1).repeat(windows)
    target = sequences[:, 1:].flatten()
    return Batch(window, sequences[:, :-1], length, target, window, [(windows, LENGTH)])


def step_cost(case: Case, loss: str) -> dict[str, float]:
    """Median seconds of a step, and the memory of its process beyond four tables, in MiB."""
    torch.set_num_threads(1)
    dataset = invented(case)
    before = _peak()
    model, batch = built(case).train(), batch_of(case, dataset)
    settings = LossSettings("ce" if loss == "whole" else loss, num_negatives=1024)
    objective = BaseLoss(settings, dataset, max_seq_len=LENGTH, seed=0, device=CPU)
    optimizer = torch.optim.Adam(model.parameters())
    seconds = []
    for _ in range(STEPS):
        begin = time.process_time()
        if loss == "whole":
            table = model.shared_table()
            value = F.cross_entropy(model.score(batch.encode(model, table), table), batch.target)
        else:
            value = objective(model, batch).loss
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        seconds.append(time.process_time() - begin)
    beside = _peak() - before - 4 * case.table_mib
    return {"step_s": round(statistics.median(seconds[1:]), 3), "memory_mib": round(beside)}


def ranking_cost(case: Case) -> dict[str, float]:
    torch.set_num_threads(1)
    dataset, before = invented(case), _peak()
    model = built(case)
    begin = time.process_time()
    evaluate_model(model, dataset.test, dataset, [10], CPU)
    seconds = time.process_time() - begin
    beside = _peak() - before - case.table_mib
    return {
        "seconds": round(seconds, 3),
        "memory_mib": round(beside),
        "million_users_h": round(seconds / USERS / 3.6e-3, 2),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(work: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """`work` in a process of its own, forked before anything is made: imports take longer than a step."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(work, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--targets", type=int, default=1024)
    args = parser.parse_args()
    if min(args.items, args.width, args.targets) < 1:
        parser.error("--items, --width and --targets must be at least 1")
    case = Case(args.items, args.width, args.targets)
    result = {
        "items": case.items,
        "table_mib": round(case.table_mib),
        **{loss: apart(step_cost, case, loss) for loss in LOSSES},
        "ranking": apart(ranking_cost, case),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
