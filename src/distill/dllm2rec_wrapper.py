"""DLLM2Rec's own program (istarryn/DLLM2Rec@b78cc65), run as it is on our data and teacher files.

It is never imported: `main.py` of the checked-out submodule runs in a process of its own, in a folder that holds
data and teacher files in its formats. What it computes differs from this framework where it evaluates: it chooses its
best epoch on the test rows and leaves dropout on (`PROTOCOL`).
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
import torch

from src.core.data_utils import Rows, SequenceDataset
from src.core.errors import UserError, check
from src.core.files import sha256_file, write_atomic, writing
from src.core.foreign.frames import read_pickled_frame
from src.core.foreign.tensors import read_tensors
from src.core.git_info import PROJECT_ROOT
from src.core.logging import progress_bar
from src.core.metrics import MetricsConfig
from src.core.teacher_files import CONFIDENCE_FILE, EMBEDDINGS_FILE, RANKING_FILE
from src.distill.config import DistillConfig
from src.distill.data_bridge import TeacherOutputs
from src.student.config import StudentConfig

FOLDER_VARIABLE = "DLLM2REC_DIR"
PROTOCOL = "best epoch chosen on test ndcg@20, dropout on in evaluation, history shown"
KS = (1, 5, 10, 20)
_HASHES = {
    "main.py": "77cb80197efb8c5b723e347df20cb1bf8f46d8555fbeca108c1013e14174b568",
    "SASRecModules_ori.py": "76ef521d9ad16dcf87f85f89604749103db6f087754a3210505bc22180a11bb3",
    "utility.py": "345d71fe9b54538f64131eb7c49baf83616bb7a7af2cb6c19761e2ecb115eadd",
}
_MODELS = {"sasrec": "SASRec", "gru4rec": "GRU", "caser": "Caser"}
_WINDOW, _LLM_DIM, _HIDDEN, _SEED, _PATIENCE = 10, 4096, 64, 2024, 10
_DATA_NAME = "ours"


@dataclass
class UpstreamResult:
    """What the program printed.

    Attributes:
        best_epoch: its choice (1-based), by NDCG@20 on the test rows; 0 if no epoch found anything.
        epochs: per epoch its loss, `valid/...` and `test/...` with hit_ratio@K and ndcg@K.
    """

    best_epoch: int = 0
    epochs: list[dict[str, float]] = field(default_factory=list)

    def metrics(self, split: str) -> dict[str, float]:
        """hit_ratio@K, recall@K (the same with one target) and ndcg@K of the best epoch."""
        prefix = f"{split}/"
        values = self.epochs[self.best_epoch - 1]
        found = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
        return {**found, **{k.replace("hit_ratio", "recall"): v for k, v in found.items() if k.startswith("hit_ratio")}}


def find_program() -> Path:
    """The folder of the unmodified program: `DLLM2REC_DIR`, else the submodule.

    Raises:
        UserError: it is not checked out, or a file is not the pinned one.
    """
    folder = Path(os.environ.get(FOLDER_VARIABLE, PROJECT_ROOT / "src" / "third_party" / "dllm2rec"))
    for name, digest in _HASHES.items():
        if not (folder / name).is_file():
            raise UserError(
                f"distill.engine=submodule: no {name} in {folder}; run `git submodule update --init "
                f"src/third_party/dllm2rec`, or point {FOLDER_VARIABLE} at a checkout of istarryn/DLLM2Rec@b78cc65"
            )
        if sha256_file(folder / name) != digest:
            raise UserError(
                f"distill.engine=submodule: {folder / name} is not that of istarryn/DLLM2Rec@b78cc65 (sha256 "
                f"{digest[:12]}...); only the unmodified program is run"
            )
    return folder


def check_settings(
    settings: DistillConfig, student: StudentConfig, seed: int, policy: str, metrics: MetricsConfig
) -> None:
    """Refuse, by name, what the program hard-codes otherwise.

    Raises:
        UserError: a setting that it would ignore.
    """

    def only(key: str, value: object, wanted: object) -> None:
        check(value == wanted, key, value, f"{wanted} with distill.engine=submodule: the original program fixes it")

    check(student.name in _MODELS, "student.name", student.name, f"one of {', '.join(_MODELS)} (engine=submodule)")
    only("general.seed", seed, _SEED)
    own = asdict(student)
    for key, wanted in (
        ("emb_size", _HIDDEN),
        ("hidden_size", _HIDDEN),
        ("patience", _PATIENCE),
        ("lr_schedule", "constant"),
        ("grad_clip", 0),
        ("num_blocks", 1),
        ("num_heads", 1),
        ("norm", "dllm2rec"),
        ("scores", "dot"),
        ("tied_output", False),
        ("batching", "rows"),
        ("mixed_precision", False),
    ):
        if key in own:  # not every kind has every key
            only(f"student.{key}", own[key], wanted)
    if student.name == "gru4rec":
        only("student.dropout", student.dropout, 0)
    for key, wanted in (
        ("teacher", "files"),
        ("ranking", "exported"),
        ("candidate_loss", "official"),
        ("dros_average", "batch"),
        ("average_over", "batch"),
        ("confidence", "per_candidate"),
        ("confidence_temperature", 1),
        ("embedding", "fuse"),
        ("embedding_transform", "none"),
        ("init", "scratch"),
    ):
        only(f"distill.{key}", getattr(settings, key), wanted)
    only("distill.loss", settings.as_student(student).loss, "bce_dros")
    only("active.strategy", policy, "all")
    allowed = [f"{name}@{k}" for name in ("ndcg", "recall", "hit_ratio") for k in KS]
    only("metrics.history", metrics.history, "shown")
    check(
        metrics.monitor in allowed,
        "metrics.monitor",
        metrics.monitor,
        f"one of {', '.join(allowed)} (engine=submodule)",
    )


def write_files(folder: Path, dataset: SequenceDataset, outputs: TeacherOutputs) -> None:
    """Write data and teacher files as the program reads them, histories cut to their last 10 items.

    They are read back and compared: a version of pandas that writes them otherwise must not pass unseen.

    Raises:
        UserError: embeddings wider than its 4096 columns, or files that do not hold what was written.
    """
    data, teacher = folder / "data" / _DATA_NAME, folder / "tocf" / _DATA_NAME
    _write(data / "data_statis.df", pd.DataFrame({"seq_size": [_WINDOW], "item_num": [dataset.num_items]}).to_pickle)
    _write(data / "train_data.df", _frame(dataset.train, dataset.pad_id).to_pickle)
    _write(data / "val_data.csv", _frame(dataset.valid, dataset.pad_id).to_csv)
    _write(data / "test_data.csv", _frame(dataset.test, dataset.pad_id).to_csv)
    if outputs.known is not None:
        raise UserError(
            f"distill.engine=submodule: the teacher was asked for {int(outputs.known.sum())} of {len(dataset.train)} "
            "training rows, the original program needs all; export with teacher.export.rows=all"
        )
    if outputs.ranking is not None and outputs.confidence is not None:
        ranking, confidence = outputs.ranking.numpy(), outputs.confidence.numpy()
        _write(teacher / RANKING_FILE, lambda path: np.savetxt(path, ranking, fmt="%d"))
        _write(teacher / CONFIDENCE_FILE, lambda path: np.savetxt(path, confidence, fmt="%.9g"))
    if outputs.embeddings is not None:
        width = outputs.embeddings.shape[1]
        if width > _LLM_DIM:
            raise UserError(
                f"distill.engine=submodule: the teacher's embeddings are {width} wide, the original program takes at "
                f"most {_LLM_DIM} columns"
            )
        padded = torch.nn.functional.pad(outputs.embeddings, (0, _LLM_DIM - width))
        _write(teacher / EMBEDDINGS_FILE, lambda path: torch.save(padded, path))
    _compare(folder, dataset, outputs)


def _compare(folder: Path, dataset: SequenceDataset, outputs: TeacherOutputs) -> None:
    data, written = folder / "data" / _DATA_NAME, read_teacher(folder)
    tables = {"train_data.df": dataset.train, "val_data.csv": dataset.valid, "test_data.csv": dataset.test}
    same = {
        data / name: all(map(np.array_equal, read_windows(data / name), rows.windows(_WINDOW, dataset.pad_id)))
        for name, rows in tables.items()
    }
    if outputs.ranking is not None and written.ranking is not None:
        same[folder / "tocf" / _DATA_NAME / RANKING_FILE] = torch.equal(written.ranking, outputs.ranking)
    for path, equal in same.items():
        if not equal:
            raise UserError(f"{path}: does not hold what was written; is another program writing there?")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    write_atomic(path, write)


def _frame(rows: Rows, pad_id: int) -> pd.DataFrame:
    history, length, target = rows.windows(_WINDOW, pad_id)
    return pd.DataFrame({"seq": history.tolist(), "len_seq": length, "next": target})


def read_windows(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A table of windows in the program's formats (`.df` pickle, not executed, or `.csv`).

    Returns:
        history int64 [N, 10], length int64 [N], target int64 [N].
    """
    with _damage_named(path):
        columns = read_pickled_frame(path) if path.suffix == ".df" else pd.read_csv(path).to_dict("list")
        history, length, target = columns["seq"], columns["len_seq"], columns["next"]
        if path.suffix != ".df":
            history = [[int(item) for item in text.strip("[]").split(",")] for text in history]
        return np.array(history, dtype=np.int64), np.array(length, dtype=np.int64), np.array(target, dtype=np.int64)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:  # pandas' and numpy's
        raise UserError(f"{path}: does not hold what was written ({error!r:.200}); start the stage again") from None


def read_teacher(folder: Path) -> TeacherOutputs:
    """The teacher's files as the program will read them; a part that is not there is None."""
    teacher = folder / "tocf" / _DATA_NAME
    table, ranking, confidence = (teacher / name for name in (EMBEDDINGS_FILE, RANKING_FILE, CONFIDENCE_FILE))
    return TeacherOutputs(
        embeddings=read_tensors(table) if table.is_file() else None,
        ranking=_read_lines(ranking, np.int64),
        confidence=_read_lines(confidence, np.float32),
    )


def _read_lines(path: Path, dtype: type) -> torch.Tensor | None:
    if not path.is_file():
        return None
    with _damage_named(path):
        return torch.from_numpy(np.loadtxt(path, dtype=dtype, ndmin=2))


def arguments(settings: DistillConfig, student: StudentConfig, device: torch.device) -> list[str]:
    """The program's command line; `--cuda` names the device that it makes visible, -1 none."""
    values = {
        "model_name": _MODELS[student.name],
        "data": _DATA_NAME,
        "cuda": (device.index or 0) if device.type == "cuda" else -1,
        "dropout_rate": student.dropout,
        "batch_size": settings.batch_size,
        "epoch": settings.num_epochs,
        "hidden_factor": student.hidden_size,
        "lr": settings.lr,
        "l2_decay": student.weight_decay,
        **{key: value for key, value in asdict(student).items() if key in ("num_filters", "filter_sizes")},
        "alpha": settings.alpha,
        "beta": student.dros_beta,
        "ed_weight": settings.ed_weight,
        "lam": settings.kd_weight,
        "candidate_topk": settings.top_k,
        "gamma_position": settings.gamma_position,
        "gamma_confidence": settings.gamma_confidence,
        "gamma_consistency": settings.gamma_consistency,
    }
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def run_program(program: Path, folder: Path, words: list[str], num_epochs: int, log_path: Path) -> UpstreamResult:
    """Run `main.py` in `folder`, show its progress, keep what it prints in `log_path`.

    Raises:
        UserError: it failed; the message ends with its last line.
    """
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(program / "main.py"), *words]
    result = UpstreamResult()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with (
        log_path.open("w", encoding="utf-8") as log,
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
        progress_bar() as bar,
    ):
        assert process.stdout is not None  # it is a pipe
        task = bar.add_task("DLLM2Rec", total=num_epochs, info="")
        try:
            for line in _noted(process.stdout, log):
                if read_line(line, result):
                    best = result.metrics("test")["ndcg@10"] if result.best_epoch else 0.0
                    bar.update(task, completed=len(result.epochs), info=f"best test ndcg@10 {best:.4f}")
            code = process.wait()
        finally:
            process.kill()
        errors.seek(0)
        trace = errors.read()
        log.write(trace)
    if code != 0 or not result.best_epoch:
        last = (trace.strip().splitlines() or ["it found no target among its top 20 in any epoch"])[-1]
        raise UserError(
            f"distill.engine=submodule: the original program ended with code {code}: {last}; see {log_path}"
        )
    return result


def _noted(lines: Iterable[str], log: TextIO) -> Iterator[str]:
    for line in lines:
        with writing(Path(log.name)):
            log.write(line)
            log.flush()
        yield line


_LOSS = re.compile(r"the loss in (\d+)th step is: (\S+),")
_BEST = re.compile(r"BEST STEP:(\d+),")
_NUMBERS = re.compile(r"^\d\.\d+(\t\d\.\d+){7}$")


def read_line(line: str, result: UpstreamResult) -> bool:
    """Take in one line of the program's output; True where it ends an epoch."""
    if found := _LOSS.search(line):
        result.epochs.append({"epoch": int(found[1]), "loss": float(found[2])})
    elif _NUMBERS.match(line.strip()):
        split = "test" if "valid/ndcg@1" in result.epochs[-1] else "valid"
        values = map(float, line.split())
        for k in KS:
            result.epochs[-1] |= {f"{split}/hit_ratio@{k}": next(values), f"{split}/ndcg@{k}": next(values)}
    elif found := _BEST.search(line):
        result.best_epoch = int(found[1])
        return True
    return False
