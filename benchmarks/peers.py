"""Our student beside SASRec of RecTools and of RecBole, on one log, for the same seconds; prints one JSON line.

    python -m benchmarks.peers dataset=... [key=value ...] --peers <folder> [--seconds 300] [--plot peers.png]

The log is what the overrides choose, leave-one-out; ours is the student that they choose (`+experiment=text` as well),
and, as `equal`, `sasrec_plus` with what the peers get: its width, blocks, heads, window, dropout and learning rate,
cross-entropy over all items. All train one after another, with as many threads, on the same interactions, the
validation and test items apart. The clock runs while they train; after some of the epochs each gives its ten best items
for every user, history removed, and NDCG@10 is computed here, for all in the same way. The first run makes a virtual
environment for each peer in `<folder>`, from the package index; PyTorch, numpy and pandas are ours in all of them.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.peer_programs.common import CLOCKS, TOP_K, Clock, is_looked_at
from benchmarks.quality import CPU, quiet_context, settings_of, student_settings
from src.core.data_utils import SequenceDataset, load_dataset
from src.core.device import keep_freed_memory
from src.core.seed import set_seed
from src.student.config import StudentConfig
from src.student.evaluator import evaluate_model
from src.student.models import build_model
from src.student.objectives import BaseLoss
from src.student.trainer_baseline import BaselineObjective
from src.student.training import Validation, train_student

METRIC = f"ndcg@{TOP_K}"
PROGRAMS = Path(__file__).with_name("peer_programs")
PEERS = {  # with what they need beside our packages
    "rectools": [
        *("rectools==0.19.0", "pytorch-lightning==2.5.2", "lightning-utilities", "torchmetrics", "implicit"),
        *("typeguard", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "attrs"),
    ],
    "recbole": ["recbole==1.2.1", "colorlog", "colorama", "thop", "texttable", "plotly", "narwhals", "psutil"],
}
BATCH_USERS, BATCH_ROWS = 128, 2048  # the defaults of RecTools and of RecBole
Curve = list[dict[str, float]]


def environment_of(peer: str, folder: Path) -> Path:
    """The Python of a peer's environment, made if need be."""
    python = folder / peer / "bin" / "python"
    if (folder / peer / "complete").is_file():
        return python
    venv.create(folder / peer, with_pip=True, clear=True)
    site = next((folder / peer / "lib").glob("python*/site-packages"))
    (site / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    done = subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *PEERS[peer]])
    if done.returncode:
        raise SystemExit(f"{peer} could not be installed into {folder / peer}; it comes from the package index")
    (folder / peer / "complete").touch()
    return python


def write_log(dataset: SequenceDataset, folder: Path) -> None:
    """The interactions of all users with a test row, in the order of users and time, as the programs read them."""
    rows = dataset.test
    items = np.concatenate([np.append(rows.history(i), rows.targets[i]) for i in range(len(rows))])
    lengths = rows.pos - rows.start + 1
    user = np.repeat(np.arange(len(rows)), lengths)
    left = np.repeat(lengths.cumsum(), lengths) - np.arange(len(items))  # 1: the user's last
    np.savez(folder / "log.npz", user=user, item=items, part=np.maximum(3 - left, 0))


def peer_curve(peer: str, python: Path, dataset: SequenceDataset, settings: dict[str, Any]) -> Curve:
    """NDCG@10 of a peer against the seconds that it has trained."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_log(dataset, folder)
        (folder / "settings.json").write_text(json.dumps(settings))
        program = [python, PROGRAMS / f"with_{peer}.py", folder]
        done = subprocess.run(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=folder)
        if done.returncode:
            raise SystemExit(f"{peer} ended with {done.returncode}: {done.stderr[-2000:]}")
        curve = []
        for line in (folder / "epochs.jsonl").read_text().splitlines():
            point = json.loads(line)
            with np.load(folder / f"lists_{point['epoch']}.npz") as lists:
                for part, rows in (("valid", dataset.valid), ("test", dataset.test)):
                    point[part] = ndcg(lists[part], rows.targets)
            curve.append(point)
    return curve


def ndcg(lists: np.ndarray, targets: np.ndarray) -> float:
    """Mean of 1 / log2(rank + 1) of each target in its list, 0 where it is not there.

    >>> ndcg(np.array([[4, 7], [1, 2]]), np.array([7, 3])) == 0.5 / np.log2(3)
    True
    """
    row, place = np.nonzero(lists == targets[:, None])
    return float((1 / np.log2(place + 2)).sum() / len(targets))


class _Over(Exception):
    """The time is over."""


def our_curve(student: StudentConfig, dataset: SequenceDataset, *, seed: int, seconds: float, clock: str) -> Curve:
    """NDCG@10 of our student against the seconds that it has trained."""
    keep_freed_memory()  # as our commands do
    set_seed(seed)
    model, curve = build_model(student.model_config(dataset.num_items)), []
    loss = BaseLoss(student.loss_settings(), dataset, max_seq_len=student.max_seq_len, seed=seed, device=CPU)
    watch, epochs = Clock(seconds, clock), 0

    def evaluate() -> dict[str, float]:
        nonlocal epochs
        watch.stop()
        epochs += 1
        is_last = watch.is_over or epochs == student.num_epochs
        if is_looked_at(epochs) or is_last:
            point = {"epoch": epochs, "seconds": watch.seconds}
            for part, rows in (("valid", dataset.valid), ("test", dataset.test)):
                point[part] = evaluate_model(model, rows, dataset, [TOP_K], CPU).metrics_masked[METRIC]
            curve.append(point)
        if is_last:
            raise _Over
        watch.start()
        return {METRIC: float(epochs)}  # no patience: all train for the same time

    objective = BaselineObjective(loss)
    validation = Validation(monitor=METRIC, evaluate=evaluate, save_best=lambda epoch, value: None)
    watch.start()
    try:
        train_student(
            model,
            dataset,
            objective,
            validation=validation,
            settings=student.fit_settings(),
            context=quiet_context(seed),
        )
    except _Over:
        return curve
    raise AssertionError("the last epoch is the last that is evaluated")


def summary(curve: Curve) -> dict[str, float]:
    """Seconds of an epoch, and NDCG@10 of the epoch that was best on the validation items."""
    best = max(curve, key=lambda point: point["valid"])
    result = {"epoch_s": curve[-1]["seconds"] / curve[-1]["epoch"], "best_epoch": best["epoch"]}
    return {k: float(f"{v:.4g}") for k, v in {**result, **{p: best[p] for p in ("seconds", "valid", "test")}}.items()}


def draw(curves: dict[str, Curve], title: str, file: Path) -> None:
    """Test NDCG@10 against seconds of training."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for (name, curve), marker in zip(curves.items(), "osD^v", strict=False):
        axes.plot([p["seconds"] for p in curve], [p["test"] for p in curve], marker=marker, markersize=4, label=name)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="NDCG@10 on test items, history removed", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder of their virtual environments")
    parser.add_argument("--only", nargs="+", choices=[*PEERS, "equal", "ours"], default=[*PEERS, "equal", "ours"])
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, for each")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that does other work as well"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    settings = settings_of(arguments.overrides)
    if settings.dataset.split.method != "leave_one_out":
        raise SystemExit(f"dataset.split.method={settings.dataset.split.method}: the peers know leave_one_out here")
    dataset = load_dataset(settings.dataset, settings.paths.data_dir, logging.getLogger("peers"))
    student, equal = settings.student, student_settings("sasrec_plus")
    given = {
        "width": equal.emb_size,
        "num_blocks": equal.num_blocks,
        "num_heads": equal.num_heads,
        "window": equal.max_seq_len,
        "dropout": equal.dropout,
        "lr": equal.lr,
        "batch_users": BATCH_USERS,
        "batch_rows": BATCH_ROWS,
        "seconds": arguments.seconds,
        "seed": arguments.seed,
        "clock": arguments.clock,
    }
    limits = {key: given[key] for key in ("seed", "seconds", "clock")}

    def peer(name: str) -> Callable[[], Curve]:
        return lambda: peer_curve(name, environment_of(name, arguments.peers.resolve()), dataset, given)

    ways: dict[str, Callable[[], Curve]] = {
        **{name: peer(name) for name in PEERS},
        "equal": lambda: our_curve(equal, dataset, **limits),
        "ours": lambda: our_curve(student, dataset, **limits),
    }
    curves = {}
    for name in arguments.only:
        curves[name] = ways[name]()
        print(name, summary(curves[name]), file=sys.stderr)  # an hour's work must not be lost with the next one's
    if arguments.plot:
        draw(curves, f"{dataset.name}: {dataset.num_users:,} users, {dataset.num_items:,} items", arguments.plot)
    result = {name: summary(curve) for name, curve in curves.items()}
    about = {"metric": METRIC, "rows": len(dataset.train), "seconds": arguments.seconds, "clock": arguments.clock}
    print(json.dumps({**about, "threads": torch.get_num_threads(), **result, "curves": curves}))


if __name__ == "__main__":
    main()
