"""One epoch over every training row of MovieLens-100K and a full evaluation, row-wise and packed; prints one JSON line.

    python -m benchmarks.epoch --raw_dir <folder of ML-100K's u.data and u.item>

SASRec with 64 factors and 2 blocks, windows of 50, cross-entropy over all items, batches of 256 rows or 1,024 packed
targets. The evaluation ranks all items for the test rows; its time over 6,040 users and 3,416 items is measured on
invented histories of ML-1M's size.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality import CPU, quiet_context
from src.core.data_utils import Rows, SequenceDataset, load_dataset
from src.core.datasets.movielens import MovielensConfig
from src.core.metrics import MetricsConfig
from src.student.config import ModelConfig, SASRecConfig
from src.student.evaluator import evaluate_model, evaluate_scores
from src.student.models import build_model
from src.student.trainer_baseline import train_baseline

REPEATS = 3
KS = [1, 5, 10, 20]


def epoch_seconds(dataset: SequenceDataset, batching: str, batch_size: int, folder: Path) -> float:
    """One epoch with its validation, the test evaluation included."""
    student = SASRecConfig(
        name="sasrec", num_blocks=2, batching=batching, batch_size=batch_size, num_epochs=1, max_seq_len=50
    )
    begin = time.perf_counter()
    train_baseline(student, dataset, metrics=MetricsConfig(), folder=folder, context=quiet_context(1))
    model = build_model(student.model_config(dataset.num_items))
    evaluate_model(model, dataset.test, dataset, KS, CPU)
    return time.perf_counter() - begin


def evaluation_seconds() -> float:
    """All users of ML-1M: 6,040 histories of 160 items on average, 3,416 items."""
    random = np.random.default_rng(0)
    lengths = random.integers(20, 300, 6040)
    end = lengths.cumsum()
    items = random.integers(3416, size=int(end[-1])).astype(np.int32)
    rows = Rows(items, np.concatenate([[0], end]), end - 1)
    model = build_model(ModelConfig("sasrec", 3416, 64, 64, 50, 0.0, num_blocks=2)).eval()

    def score(index: np.ndarray) -> torch.Tensor:
        history, length, _ = rows.windows(50, 3416, index)
        return model(torch.from_numpy(history), torch.from_numpy(length))

    begin = time.perf_counter()
    evaluate_scores(score, rows, 3416, KS)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw_dir", required=True)
    config = MovielensConfig(raw_dir=parser.parse_args().raw_dir)
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset(config, Path(folder) / "data", logging.getLogger("epoch"))
        seconds = {
            batching: [
                epoch_seconds(dataset, batching, batch_size, Path(folder) / batching)
                for _ in range(REPEATS if batching == "packed" else 1)
            ]
            for batching, batch_size in (("packed", 1024), ("rows", 256))
        }
    result = {f"{name}_s": round(statistics.median(values), 2) for name, values in seconds.items()}
    result["evaluate_6040_users_s"] = round(statistics.median(evaluation_seconds() for _ in range(REPEATS)), 2)
    print(json.dumps({"train_rows": len(dataset.train), **result, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
