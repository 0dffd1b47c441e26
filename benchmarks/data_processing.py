"""Seconds to process data sets from their raw files, as one JSON line.

Run: python -m benchmarks.data_processing [--raw_dir <folder of MovieLens-100K>] [--interactions 1000000]
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

import numpy as np

from src.core.data_utils import load_dataset
from src.core.datasets.movielens import MovielensConfig

LOGGER = logging.getLogger("data_processing")


def write_ml_1m(folder: Path, num_interactions: int, num_users: int = 6040, num_items: int = 3706) -> None:
    """Invents a log in the format of MovieLens-1M."""
    random = np.random.default_rng(0)
    user = np.sort(random.integers(1, num_users + 1, num_interactions))
    item = random.integers(1, num_items + 1, num_interactions)
    when = random.integers(956_000_000, 1_046_000_000, num_interactions)
    lines = (f"{u}::{i}::3::{t}\n" for u, i, t in zip(user.tolist(), item.tolist(), when.tolist(), strict=True))
    (folder / "ratings.dat").write_text("".join(lines))
    movies = (f"{i}::Invented Movie {i}, The (1999)::Drama\n" for i in range(1, num_items + 1))
    (folder / "movies.dat").write_text("".join(movies))


def measure(version: str, raw_dir: Path) -> dict[str, float]:
    """Seconds of the first call, which processes, and of the second, which reads the cache."""
    cfg = MovielensConfig(version=version, raw_dir=str(raw_dir))
    seconds = {}
    with tempfile.TemporaryDirectory() as data_dir:
        for call in ("process", "cached"):
            start = time.perf_counter()
            dataset = load_dataset(cfg, Path(data_dir), LOGGER)
            seconds[f"{call}_s"] = round(time.perf_counter() - start, 3)
    return {"train_rows": len(dataset.train), **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw_dir", type=Path, help="folder of u.data and u.item; left out: not measured")
    parser.add_argument("--interactions", type=int, default=1_000_000, help="size of the invented log")
    args = parser.parse_args()
    result = {"ml-100k": measure("100k", args.raw_dir) if args.raw_dir else None}
    with tempfile.TemporaryDirectory() as folder:
        write_ml_1m(Path(folder), args.interactions)
        result["synthetic-ml-1m"] = {"interactions": args.interactions, **measure("1m", Path(folder))}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
