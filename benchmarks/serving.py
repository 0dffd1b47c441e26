"""How many histories a served student answers in a second: PyTorch and onnxruntime, from one folder.

    python -m benchmarks.serving [--checkpoint <folder>] [--histories 100000] [--blocks 0] [--peers <site-packages>]

Without a checkpoint a student of Amazon Beauty's size is made: 12,101 items, 256 wide, a window of 12. Histories are
drawn, 5 to 15 items long; each is answered by its 10 best items that are not in it. Rounds of the ways alternate.
With a folder that holds RecTools and PyTorch Lightning, RecTools' SASRec of the same width, blocks and window answers
the same histories, untrained: how long an answer takes does not depend on its weights.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch

from src.core.paths import ONNX_FILE
from src.serving.onnx_export import HISTORY, SCORES, export_onnx
from src.serving.recommender import Recommender
from src.student.checkpoint import Catalogue, CheckpointInfo
from src.student.config import ModelConfig
from src.student.models import build_model

TOP_K, BATCH, ROUNDS = 10, 1024, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--histories", type=int, default=100_000)
    parser.add_argument("--blocks", type=int, default=0)
    parser.add_argument("--peers", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = arguments.checkpoint or made(Path(temporary) / "student", arguments.blocks)
        print(json.dumps(measure(folder, Path(temporary) / ONNX_FILE, arguments.histories, peers=arguments.peers)))


def made(folder: Path, blocks: int, num_items: int = 12_101) -> Path:
    config = ModelConfig(
        "sasrec",
        num_items,
        256,
        256,
        12,
        0.5,
        num_blocks=blocks,
        num_heads=2 if blocks else 1,
        tied_output=True,
        scores="cosine",
        temperature=0.06,
    )
    names = [str(item) for item in range(num_items)]
    info = CheckpointInfo("made", "0" * 64, 1, "none", 1, "ndcg@10", 0.0)
    Recommender(build_model(config), Catalogue(names, [f"title {name}" for name in names]), info).save_pretrained(
        folder
    )
    return folder


def measure(folder: Path, onnx_file: Path, count: int, *, peers: Path | None = None) -> dict[str, float | int | bool]:
    """Rows a second of each way, the folder's size, and the seconds until the student is loaded."""
    begin = time.perf_counter()
    student = Recommender.from_pretrained(folder)
    load_s = time.perf_counter() - begin
    export_onnx(student.model.cpu(), onnx_file, {})
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    items = len(student.items.item_ids)
    histories = [draw.integers(0, items, length).tolist() for length in draw.integers(5, 16, count)]
    names = [[student.items.item_ids[item] for item in history] for history in histories]
    ways: dict[str, Callable[[], list]] = {
        "torch": lambda: [[r.item_id for r in best] for best in student.recommend(names, top_k=TOP_K)],
        "onnx": lambda: _by_onnx(session, histories, items, student.items.item_ids),
    }
    if peers is not None:
        ways["rectools"] = _rectools(peers, histories, student.model.config)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begin = time.perf_counter()
            answers[name] = way()
            seconds[name].append(time.perf_counter() - begin)
    return {
        "histories": count,
        "items": items,
        **{f"{name}_rows_s": round(count / min(found)) for name, found in seconds.items()},
        "same_answers": round(
            float(np.mean([a == b for a, b in zip(answers["torch"], answers["onnx"], strict=True)])), 4
        ),
        "load_s": round(load_s, 2),
        "folder_mb": round(sum(file.stat().st_size for file in folder.iterdir()) / 1e6, 1),
        "threads": torch.get_num_threads(),
    }


def _rectools(peers: Path, histories: list[list[int]], config: ModelConfig) -> Callable[[], list]:
    """RecTools' `recommend` for the same histories, one a user, as its own data set is made from them."""
    sys.path.append(str(peers))
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    items = np.concatenate([*histories, np.arange(config.num_items)])  # one user more has them all
    users = np.append(users, np.full(config.num_items, len(histories)))
    times = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(len(items)), unit="s")
    log = pd.DataFrame({Columns.User: users, Columns.Item: items, Columns.Weight: 1.0, Columns.Datetime: times})
    dataset = Dataset.construct(log)
    model = SASRecModel(
        n_factors=config.hidden_size,
        n_blocks=config.num_blocks,
        n_heads=config.num_heads,
        session_max_len=config.max_seq_len,
        epochs=0,
        recommend_batch_size=BATCH,
        recommend_torch_device="cpu",
        verbose=0,
    )
    model.fit(dataset)
    asked = np.arange(len(histories))
    return lambda: model.recommend(users=asked, dataset=dataset, k=TOP_K, filter_viewed=True)[Columns.Item].tolist()


def _by_onnx(
    session: onnxruntime.InferenceSession, histories: list[list[int]], items: int, names: list[str]
) -> list[list[str]]:
    """As a server without PyTorch would do it."""
    answers = []
    for begin in range(0, len(histories), BATCH):
        part = histories[begin : begin + BATCH]
        longest = max(map(len, part))
        padded = np.array([history + [items] * (longest - len(history)) for history in part])
        (scores,) = session.run([SCORES], {HISTORY: padded})
        for row, history in enumerate(part):
            scores[row, history] = -np.inf
        best = np.argpartition(-scores, TOP_K, axis=1)[:, :TOP_K]
        order = np.take_along_axis(-scores, best, axis=1).argsort(axis=1, kind="stable")
        answers += [[names[item] for item in row] for row in np.take_along_axis(best, order, axis=1).tolist()]
    return answers


if __name__ == "__main__":
    main()
