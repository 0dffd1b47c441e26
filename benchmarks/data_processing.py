"""Seconds to process data sets from their raw files, and how time and memory grow with a log, as one JSON line.

Run: python -m benchmarks.data_processing [--raw_dir <folder of MovieLens-100K>] [--interactions 1000000]
         [--millions 1 5 20 100] [--plot growth.png] [--folder <with room for 45 bytes an interaction>]

For each of `--millions` a log of that many interactions is invented and read as `dataset=csv`, with 100 of a user and
3 items for 1,000: 100 million have 1 million users and 300,000 items. In processes of their own it is processed, read
from the cache, and cut into batches of one epoch, row by row.
"""

import argparse
import json
import logging
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from src.core.data_utils import load_dataset
from src.core.datasets.csv_log import CsvConfig
from src.core.datasets.movielens import MovielensConfig

LOGGER = logging.getLogger("data_processing")
_CHUNK = 1_000_000
_BATCH, _WINDOW = 1024, 50


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


# --- growth -------------------------------------------------------------------------------------------------


def write_csv_log(folder: Path, num_interactions: int) -> None:
    """Invents a log in the order of time: some users are more active, some items far more popular than others."""
    import pyarrow as pa
    from pyarrow import csv

    random = np.random.default_rng(0)
    num_users, num_items = -(-num_interactions // 100), -(-num_interactions * 3 // 1000)
    schema = pa.schema([(name, pa.int64()) for name in ("user", "item", "timestamp")])
    with (folder / "interactions.csv").open("wb") as file:
        file.write(b"user,item,timestamp\n")
        with csv.CSVWriter(file, schema, write_options=csv.WriteOptions(include_header=False)) as writer:
            for begin in range(0, num_interactions, _CHUNK):
                size = min(_CHUNK, num_interactions - begin)
                user = (num_users * random.random(size) ** 1.5).astype(np.int64)
                item = (num_items * random.random(size) ** 3).astype(np.int64)
                when = 1_400_000_000 + (begin + np.arange(size)) // 3
                writer.write_table(pa.table([user, item, when], schema=schema))
    titles = (f"{item},Invented product {item}\n" for item in range(num_items))
    (folder / "items.csv").write_text("item,title\n" + "".join(titles))


def process(folder: Path) -> dict[str, float]:
    """Seconds to load the log, by the clock and of all cores; rows to train on."""
    start, cpu = time.perf_counter(), time.process_time()
    dataset = load_dataset(CsvConfig(raw_dir=str(folder)), folder, LOGGER)
    seconds = {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    return {**seconds, "train_rows": len(dataset.train)}


def batch(folder: Path) -> dict[str, float]:
    """Seconds to cut an epoch into batches, as `process`; how many."""
    import torch

    from src.student.datamodule import build_train_loader

    dataset = load_dataset(CsvConfig(raw_dir=str(folder)), folder, LOGGER)
    start, cpu = time.perf_counter(), time.process_time()
    loader = build_train_loader(
        dataset,
        batching="rows",
        max_len=_WINDOW,
        batch_size=min(_BATCH, len(dataset.train)),
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(0),
    )
    count = sum(1 for _ in loader)
    return {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu, "batches": count}


STEPS = {"process": process, "cached": process, "batch": batch}


def alone(step: str, folder: Path) -> dict[str, float]:
    """A step, and the most memory that its process took in GiB."""
    found = STEPS[step](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB
    return {f"{step}_{name}": round(value, 2) for name, value in {**found, "gib": peak}.items()}


def growth(millions: float, parent: Path | None) -> dict[str, float]:
    result: dict[str, float] = {"interactions": round(millions * 1e6)}
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        write_csv_log(Path(folder), round(millions * 1e6))
        for step in STEPS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                result |= pool.apply(alone, (step, Path(folder)))
    return result


def plot(results: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, unit, label in zip(axes, ("cpu_s", "gib"), ("processor seconds", "peak memory, GiB"), strict=True):
        for step in STEPS:
            axis.plot(
                *([r[key] for r in results] for key in ("interactions", f"{step}_{unit}")), marker="o", label=step
            )
        axis.set(xscale="log", yscale="log", xlabel="interactions", ylabel=label)
        axis.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw_dir", type=Path, help="folder of u.data and u.item; left out: not measured")
    parser.add_argument("--interactions", type=int, default=1_000_000, help="size of the log like MovieLens-1M")
    parser.add_argument("--millions", type=float, nargs="+", default=[], help="sizes of the logs in dataset=csv")
    parser.add_argument("--plot", type=Path, help="PNG of the growth")
    parser.add_argument("--folder", type=Path, help="where the logs are written, and removed; left out: the system's")
    args = parser.parse_args()
    result = {"ml-100k": measure("100k", args.raw_dir) if args.raw_dir else None}
    with tempfile.TemporaryDirectory() as folder:
        write_ml_1m(Path(folder), args.interactions)
        result["synthetic-ml-1m"] = {"interactions": args.interactions, **measure("1m", Path(folder))}
    result["growth"] = [growth(millions, args.folder) for millions in args.millions]
    if args.plot:
        plot(result["growth"], args.plot)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
