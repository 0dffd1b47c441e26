"""One epoch over the training rows of a data set, by the ways that they can be read, and one evaluation; one JSON line.

    python -m benchmarks.epoch dataset=beauty dataset.raw_dir=<folder> student=sasrec_plus [--steps 40] [--ways ...]

The arguments choose data set and student as in every command. In turn, `--repeats` times, are trained: `packed`,
windows without padding; `padded`, the same ones, each as wide as the widest; `before`, padded, and cross-entropy from
the scores of the whole batch (student.loss=ce alone); `rows`, a window for every row, in batches of a quarter. Ratios
are medians over the repeats, seconds those of the processor, which other processes do not lengthen; `--steps` takes
that many packed steps, or as many targets, in place of the whole epoch, and evaluates nothing. `filled` is the share of
the places that hold an item. The evaluations rank all items: of the validation rows, and of invented histories of
ML-1M's size, 6,040 users and 3,416 items.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.quality import CPU, settings_of
from src.core.data_utils import Rows, SequenceDataset, load_dataset
from src.core.errors import UserError
from src.core.paths import data_dir
from src.core.seed import generator
from src.student.config import ModelConfig, StudentConfig
from src.student.datamodule import Batch, build_train_loader
from src.student.evaluator import evaluate_model, evaluate_scores
from src.student.models import Student, build_model
from src.student.objectives import BaseLoss

KS = [1, 5, 10, 20]
SEED = 1
CONF = Path(__file__).resolve().parents[1] / "conf"
WAYS = ("packed", "padded", "before", "rows")


def chosen(overrides: list[str]) -> tuple[SequenceDataset, StudentConfig]:
    cfg = settings_of(overrides)
    return load_dataset(cfg.dataset, data_dir(cfg), logging.getLogger("epoch")), cfg.student


def batches(dataset: SequenceDataset, student: StudentConfig, way: str) -> tuple[Iterable[Batch], int]:
    """The epoch's batches, and the targets of each."""
    targets = max(student.batch_size // 4, 1) if way == "rows" else student.batch_size
    loader = build_train_loader(
        dataset,
        batching="rows" if way == "rows" else "packed",
        max_len=student.max_seq_len,
        batch_size=targets,
        device=CPU,
        generator=generator(SEED, "shuffle"),
    )
    if way in ("padded", "before"):
        return (replace(batch, shapes=[(len(batch.windows), student.max_seq_len)]) for batch in loader), targets
    return loader, targets


def training_seconds(dataset: SequenceDataset, student: StudentConfig, way: str, steps: int | None) -> float:
    """Steps of training, without any evaluation; the first one is not counted, nor is the making of the windows."""
    torch.manual_seed(SEED)
    model = build_model(student.model_config(dataset.num_items)).train()
    objective = BaseLoss(student.loss_settings(), dataset, max_seq_len=student.max_seq_len, seed=SEED, device=CPU)
    optimizer = torch.optim.Adam(model.parameters(), lr=student.lr)
    found, targets = batches(dataset, student, way)
    count = None if steps is None else steps * student.batch_size // targets
    begin = 0.0
    for number, batch in enumerate(islice(found, None if count is None else count + 1)):
        if number == 1:
            begin = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=student.mixed_precision):
            loss = whole_cross_entropy(model, batch) if way == "before" else objective(model, batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.process_time() - begin


def whole_cross_entropy(model: Student, batch: Batch) -> Tensor:
    table = model.shared_table()
    return F.cross_entropy(model.score(batch.encode(model, table), table), batch.target)


def filled(dataset: SequenceDataset, student: StudentConfig, way: str) -> float:
    """Share of the places of an epoch's windows that hold an item."""
    items = places = 0
    for batch in batches(dataset, student, way)[0]:
        items += int((batch.windows != dataset.pad_id).sum())
        places += sum(number * width for number, width in batch.shapes)
    return round(items / places, 3)


def evaluation_seconds() -> float:
    """All users of ML-1M: 6,040 histories of 160 items on average, 3,416 items."""
    random = np.random.default_rng(0)
    lengths = random.integers(20, 300, 6040)
    end = lengths.cumsum()
    items = random.integers(3416, size=int(end[-1])).astype(np.int32)
    rows = Rows(items, np.concatenate([[0], end]), end - 1)
    model = build_model(ModelConfig("sasrec", 3416, 64, 64, 50, 0.0, num_blocks=2)).eval()

    def score(index: np.ndarray) -> Tensor:
        history, length, _ = rows.windows(50, 3416, index)
        return model(torch.from_numpy(history), torch.from_numpy(length))

    begin = time.process_time()
    evaluate_scores(score, rows, 3416, KS)
    return time.process_time() - begin


def validation_seconds(dataset: SequenceDataset, student: StudentConfig) -> float:
    model = build_model(student.model_config(dataset.num_items))
    begin = time.process_time()
    evaluate_model(model, dataset.valid, dataset, KS, CPU)
    return time.process_time() - begin


def measured(overrides: list[str], wanted: list[str], steps: int | None, repeats: int) -> dict[str, object]:
    dataset, student = chosen(overrides)
    if student.name == "caser":
        raise UserError("student=caser: cannot be trained on packed windows; take sasrec, sasrec_plus or gru4rec")
    ways = [way for way in WAYS if way in ("packed", *wanted) and (way != "before" or student.loss == "ce")]
    rounds = [{way: training_seconds(dataset, student, way, steps) for way in ways} for _ in range(repeats)]
    ratios = {
        f"{way} / packed": round(statistics.median(each[way] / each["packed"] for each in rounds), 2)
        for way in ways[1:]
    }
    seconds = {f"{way}_s": round(statistics.median(each[way] for each in rounds), 2) for way in ways}
    evaluations: dict[str, Callable[[], float]] = {}
    if steps is None:
        evaluations["validation_s"] = partial(validation_seconds, dataset, student)
        evaluations["evaluate_6040_users_s"] = evaluation_seconds
    return {
        "dataset": dataset.name,
        "student": student.name,
        "train_rows": len(dataset.train),
        "steps": steps or "all",
        **ratios,
        "filled": {way: filled(dataset, student, way) for way in ("packed", "padded")},
        **seconds,
        **{name: round(statistics.median(run() for _ in range(repeats)), 2) for name, run in evaluations.items()},
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="dataset=... dataset.raw_dir=... student=... paths.data_dir=...")
    parser.add_argument("--steps", type=int, help="packed steps to time; left out: the whole epoch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="packed is always among them")
    args = parser.parse_args()
    if (args.steps is not None and args.steps < 1) or args.repeats < 1:
        parser.error("--steps and --repeats must be at least 1")
    try:
        result = measured(args.overrides, args.ways, args.steps, args.repeats)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
