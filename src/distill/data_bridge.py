"""From a teacher's files to tensors, checked against the dataset they have to fit."""

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.files import sha256_file
from src.core.teacher_files import (
    CONFIDENCE_FILE,
    EMBEDDINGS_FILE,
    MANIFEST_FILE,
    RANKING_FILE,
    ROW_STATS_FILE,
    read_manifest,
)


@dataclass(frozen=True)
class TeacherOutputs:
    """A teacher's knowledge of one dataset.

    Attributes:
        embeddings: float32 [num_items, llm_dim], or None if not asked for.
        ranking: int64 [num_rows, top_k] item ids, best first, or None; row i belongs to training row i.
        confidence: float32 [num_rows, top_k] distances of those items, or [num_rows, 1] of the rows, or None.
        manifest_sha256: hash of the manifest, or None if there is none.
    """

    embeddings: Tensor | None
    ranking: Tensor | None
    confidence: Tensor | None
    manifest_sha256: str | None

    def to(self, device: torch.device) -> "TeacherOutputs":
        """Rankings and distances on `device`; the embeddings stay, `fusion.TeacherTable` places them."""
        moved = (t if t is None else t.to(device) for t in (self.ranking, self.confidence))
        return TeacherOutputs(self.embeddings, *moved, self.manifest_sha256)


def load_teacher_outputs(
    folder: Path,
    dataset: SequenceDataset,
    top_k: int,
    with_embeddings: bool,
    with_ranking: bool,
    logger: logging.Logger,
    per_sequence: bool = False,
) -> TeacherOutputs:
    """Read and check a teacher's files.

    Args:
        top_k: leading columns of the ranking to keep.
        with_embeddings, with_ranking: what the distillation needs; the rest is not read.
        per_sequence: take one distance per row, the best item's before any scaling, from `row_stats.npz`.

    Raises:
        UserError: a file is missing, does not fit the dataset, or holds impossible values.
    """
    if top_k > dataset.num_items:
        raise UserError(f"distill.top_k={top_k}: dataset {dataset.name} has only {dataset.num_items} items")
    manifest_hash = _check_manifest(folder, dataset, logger)
    embeddings = _read_embeddings(folder / EMBEDDINGS_FILE, dataset) if with_embeddings else None
    if not with_ranking:
        return TeacherOutputs(embeddings, None, None, manifest_hash)
    ranking = _read_ranking(folder / RANKING_FILE, dataset, top_k)
    confidence = _read_matrix(folder / CONFIDENCE_FILE, dataset)
    if confidence.shape != ranking.shape:
        raise UserError(
            f"{folder / CONFIDENCE_FILE}: {confidence.shape[1]} numbers a line, {RANKING_FILE} has {ranking.shape[1]}; "
            "each distance belongs to the item in the same place"
        )
    confidence = _row_distances(folder / ROW_STATS_FILE, dataset) if per_sequence else confidence[:, :top_k]
    return TeacherOutputs(
        embeddings,
        torch.from_numpy(ranking[:, :top_k].copy()),
        torch.from_numpy(confidence.astype(np.float32)),
        manifest_hash,
    )


def _row_distances(path: Path, dataset: SequenceDataset) -> np.ndarray:
    """Each row's best distance as the teacher measured it: float [num_rows, 1], finite."""
    if not path.is_file():
        raise UserError(
            f"{path}: missing file; distill.confidence=per_sequence takes each row's distance from it, and only "
            "teachers of this program write it; with other files use distill.confidence=per_candidate"
        )
    try:
        with np.load(path) as stats:  # arrays only: pickles stay closed
            distances = stats["raw_best_distance"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: holds no array raw_best_distance ({error}); export the teacher again") from error
    if distances.shape != (len(dataset.train),) or not np.isfinite(distances).all():
        raise UserError(
            f"{path}: raw_best_distance must hold {len(dataset.train)} finite numbers, one per training row of "
            f"{dataset.name}; it has shape {distances.shape}"
        )
    return distances[:, None]


def _check_manifest(folder: Path, dataset: SequenceDataset, logger: logging.Logger) -> str | None:
    """Compare the manifest with the dataset and the files; returns its hash, None without one."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no teacher outputs; run src.exp.run_teacher for dataset {dataset.name} first, "
            "or point paths.teacher_outputs_dir at existing files"
        )
    manifest = read_manifest(folder)
    if manifest is None:
        logger.warning(
            "%s: no %s, so the order of the rows cannot be verified: line i has to belong to training row i",
            folder,
            MANIFEST_FILE,
        )
        return None
    if manifest.dataset_fingerprint != dataset.fingerprint:
        raise UserError(
            f"{folder / MANIFEST_FILE}: files of dataset {manifest.dataset} ({manifest.dataset_fingerprint[:12]}, "
            f"{manifest.num_rows} rows), this run uses {dataset.name} ({dataset.fingerprint[:12]}, "
            f"{len(dataset.train)} rows); export the teacher for it, or use the settings of the export"
        )
    for name, digest in manifest.sha256.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing file, the manifest names it; export the teacher again")
        if sha256_file(folder / name) != digest:
            raise UserError(f"{folder / name}: differs from what {MANIFEST_FILE} describes; export the teacher again")
    return sha256_file(folder / MANIFEST_FILE)


def _read_embeddings(path: Path, dataset: SequenceDataset) -> Tensor:
    if not path.is_file():
        raise UserError(f"{path}: missing file; it holds a float tensor [num_items, llm_dim]")
    try:
        embeddings = torch.load(path, map_location="cpu", weights_only=True)  # never runs code of the file
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = (str(error).splitlines() or [type(error).__name__])[0]  # an EOFError says nothing
        raise UserError(f"{path}: not a tensor file ({reason})") from error
    if not isinstance(embeddings, Tensor) or embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise UserError(f"{path}: must hold a float tensor [num_items, llm_dim]")
    if len(embeddings) != dataset.num_items:
        raise UserError(
            f"{path}: {len(embeddings)} embeddings, dataset {dataset.name} has {dataset.num_items} items; "
            "one row per item in the order of the item ids"
        )
    if not torch.isfinite(embeddings).all():
        item = int((~torch.isfinite(embeddings)).any(1).nonzero()[0])
        raise UserError(f"{path}: the embedding of item {item} holds NaN or infinity")
    return embeddings.float()


def _read_matrix(path: Path, dataset: SequenceDataset) -> np.ndarray:
    """Read a text file of one line per training row: float64 [num_rows, columns], all finite."""
    if not path.is_file():
        raise UserError(f"{path}: missing file; it holds one line per training row")
    text = path.read_text(encoding="utf-8", errors="replace")
    widths = np.array([len(line.split()) for line in text.splitlines()])
    if len(widths) != len(dataset.train):
        raise UserError(
            f"{path}: {len(widths)} lines, dataset {dataset.name} has {len(dataset.train)} training rows; "
            "line i has to belong to training row i"
        )
    ragged = np.flatnonzero(widths != widths[0])
    if len(ragged) or widths[0] == 0:
        line = int(ragged[0]) if len(ragged) else 0
        raise UserError(
            f"{path}:{line + 1}: {widths[line]} numbers, line 1 has {widths[0]}; all lines must be equally long"
        )
    try:
        values = np.array(text.split(), dtype=np.float64).reshape(len(widths), -1)
    except ValueError as error:
        raise UserError(f"{path}: holds something that is no number ({error})") from error
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise UserError(f"{path}:{bad[0] + 1}: holds NaN or infinity; all values must be finite numbers")
    return values


def _read_ranking(path: Path, dataset: SequenceDataset, top_k: int) -> np.ndarray:
    """Item ids int64 [num_rows, columns]."""
    values = _read_matrix(path, dataset)
    if values.shape[1] < top_k:
        raise UserError(
            f"{path}: {values.shape[1]} items a line, distill.top_k={top_k}; lower it or export with a "
            "larger teacher.export.top_n"
        )
    bad = (values < 0) | (values >= dataset.num_items) | (values != np.floor(values))
    if bad.any():
        line, column = np.argwhere(bad)[0]
        raise UserError(
            f"{path}:{line + 1}: item id {values[line, column]:g}; ids must be integers from 0 to "
            f"{dataset.num_items - 1} (ranks of items instead of item ids?)"
        )
    return values.astype(np.int64)
