"""The files that pass from a teacher to a student: names, layout, manifest.

| file | content |
|---|---|
| `all_embeddings.pt` | float32 [num_items, llm_dim] |
| `myrank_train.txt` | num_rows lines of top_n item ids, best first |
| `confidence_train.txt` | num_rows lines of top_n distances of those items, ascending |
| `row_stats.npz` | per row: raw best distance, answer log-probability, valid flag, whether it is in-sample |
| `rows_train.npy` | only if not all training rows were exported: int64 [num_rows], the training row of each line |
| `manifest.json` | what the files belong to and how they were made |

An export of embeddings alone has none of the files by row.
"""

import io
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.core.errors import UserError
from src.core.files import read_json, sha256_file, write_hashed, write_json
from src.core.foreign.typed import typed

if TYPE_CHECKING:
    import torch

EMBEDDINGS_FILE = "all_embeddings.pt"
RANKING_FILE = "myrank_train.txt"
CONFIDENCE_FILE = "confidence_train.txt"
ROW_STATS_FILE = "row_stats.npz"
MANIFEST_FILE = "manifest.json"
ROWS_FILE = "rows_train.npy"
DATA_FILES = (EMBEDDINGS_FILE, RANKING_FILE, CONFIDENCE_FILE)
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """Where a teacher's files come from.

    Attributes:
        num_rows: rows exported, 0 if the export has no rankings; selection: how they were chosen, None if they are all
            training rows.
        leaks_target: whether the target was among the candidates that the teacher chose from.
        in_sample_rows: rows among the exported ones that the teacher was trained on: their rankings are in-sample.
        sha256: hash of each data file.
        made_with: all settings that the files depend on.
        embedding_pooling: `last` or `mean`, over the tokens of an item's title.
        embedding_layer: an index into the LLM's hidden states, -1 the last one.
        embedding_text: the wording around the title.
        base_model_license: as the LLM's own card gives it; None where it gives none.
    """

    format_version: int
    dataset: str
    dataset_fingerprint: str
    num_rows: int
    num_items: int
    top_n: int
    llm_dim: int
    engine: str
    method: str
    candidates: str
    confidence: str
    base_model: str
    adapter_sha256: str
    in_sample_rows: int
    seed: int
    git_commit: str
    sha256: dict[str, str]
    leaks_target: bool = False
    made_with: dict[str, Any] = field(default_factory=dict)
    selection: str | None = None
    embedding_pooling: str = "last"
    embedding_layer: int = -1
    embedding_text: str = "{title}"
    base_model_license: str | None = None

    @property
    def has_rankings(self) -> bool:
        return self.num_rows > 0


@dataclass(frozen=True)
class ChosenRows:
    """The training rows that an export is limited to: int64, ascending, and in words how they were chosen."""

    index: np.ndarray
    how: str


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or None if there is none.

    Raises:
        UserError: unreadable, or of another format version.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version={version}, this program reads {FORMAT_VERSION}; export the teacher again"
        )
    return typed(content, Manifest, where=f"{path}: not a teacher manifest", advice="export the teacher again")


def find_damage(folder: Path, manifest: Manifest) -> str | None:
    """Which of the files that the manifest describes is missing or differs, in words; None if all are as written."""
    for name, digest in manifest.sha256.items():
        if not os.path.isfile(folder / name):  # False, too, for what can be no path
            return f"{folder / name}: missing file, the manifest names it"
        if sha256_file(folder / name) != digest:
            return f"{folder / name}: differs from what {MANIFEST_FILE} describes"
    return None


def write_teacher_files(
    folder: Path,
    *,
    embeddings: "torch.Tensor",
    ranking: np.ndarray | None = None,
    distances: np.ndarray | None = None,
    row_stats: dict[str, np.ndarray] | None = None,
    about: dict[str, Any],
    rows: ChosenRows | None = None,
) -> dict[str, str]:
    """Write all files; the manifest comes last and so marks the set as complete.

    To be called under `artefacts.locked(folder)`: two writers at a time would mix their files.

    Args:
        embeddings: float32 [num_items, llm_dim].
        ranking: int [num_rows, top_n]; distances: float [num_rows, top_n]. None, as `row_stats`, where the embeddings
            are all.
        row_stats: arrays of length num_rows.
        about: the remaining fields of `Manifest`.
        rows: the training row of each line; None if they are all of them.

    Returns:
        SHA-256 of every file as it was written, by its name.
    """
    for name in (MANIFEST_FILE, RANKING_FILE, CONFIDENCE_FILE, ROW_STATS_FILE, ROWS_FILE):
        (folder / name).unlink(missing_ok=True)
    writers: dict[str, Callable[[Path], None]] = {EMBEDDINGS_FILE: lambda path: _write_tensor(path, embeddings)}
    if ranking is not None and distances is not None:
        writers[RANKING_FILE] = lambda path: np.savetxt(path, ranking, fmt="%d")
        writers[CONFIDENCE_FILE] = lambda path: np.savetxt(path, distances, fmt="%.6g")
    if rows is not None:
        writers[ROWS_FILE] = lambda path: _write_npy(path, rows.index)
    written = {name: write_hashed(folder / name, write) for name, write in writers.items()}
    unlisted = {}
    if row_stats is not None:
        unlisted[ROW_STATS_FILE] = write_hashed(folder / ROW_STATS_FILE, lambda path: _write_npz(path, row_stats))
    num_rows, top_n = (0, 0) if ranking is None else ranking.shape
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        num_rows=num_rows,
        num_items=len(embeddings),
        top_n=top_n,
        llm_dim=embeddings.shape[1],
        selection=rows.how if rows is not None else None,
        sha256=written,
        **about,
    )
    unlisted[MANIFEST_FILE] = write_hashed(folder / MANIFEST_FILE, lambda path: write_json(path, asdict(manifest)))
    return written | unlisted


def _write_tensor(path: Path, tensor: "torch.Tensor") -> None:
    import torch  # names and manifests are read by commands that need no tensors

    # Through memory: torch writes the name of the file into it, which would make the bytes differ from run to run.
    buffer = io.BytesIO()
    torch.save(tensor.float().contiguous(), buffer)
    path.write_bytes(buffer.getbuffer())


def _write_npy(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # a file object: numpy would append .npy to a name
        np.save(file, array)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)
