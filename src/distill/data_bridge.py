"""From a teacher's files to tensors, checked against the dataset they have to fit."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.core.artefacts import locked
from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.files import Sighting, sha256_file
from src.core.foreign.arrays import read_array, read_arrays
from src.core.foreign.tensors import read_tensors
from src.core.paths import project_path
from src.core.teacher_files import (
    CONFIDENCE_FILE,
    EMBEDDINGS_FILE,
    MANIFEST_FILE,
    RANKING_FILE,
    ROW_STATS_FILE,
    ROWS_FILE,
    Manifest,
    find_damage,
    read_manifest,
)
from src.distill.config import DistillConfig

_ROUNDING = 1e-4  # of a distance that was computed otherwise than the order


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """A teacher's knowledge of one dataset.

    Attributes:
        embeddings: float32 [num_items, llm_dim], or None if not asked for.
        ranking: int64 [num_rows, top_k] item ids, best first, or None; row i belongs to training row i.
        confidence: float32 [num_rows, top_k] distances of those items, or [num_rows, 1] of the rows, or None.
        manifest_sha256: hash of the manifest, or None if there is none.
        known: bool [num_rows], the training rows that the teacher was asked for; None if it was for all. The others
            hold zeros.
        selection: how the export chose its rows, None if it took all or does not say.
    """

    embeddings: Tensor | None = None
    ranking: Tensor | None = None
    confidence: Tensor | None = None
    manifest_sha256: str | None = None
    known: Tensor | None = None
    selection: str | None = None

    def to(self, device: torch.device) -> "TeacherOutputs":
        """Rankings and distances on `device`; the embeddings stay, `fusion.TeacherTable` places them."""
        moved = (t if t is None else t.to(device) for t in (self.ranking, self.confidence, self.known))
        ranking, confidence, known = moved
        return replace(self, ranking=ranking, confidence=confidence, known=known)

    def restricted_to(self, rows: np.ndarray, num_rows: int) -> "TeacherOutputs":
        """As if the teacher had been asked for these training rows only, int64 [M]; no line depends on another."""
        chosen = torch.zeros(num_rows, dtype=torch.bool)
        chosen[torch.from_numpy(rows)] = True
        return replace(self, known=chosen if self.known is None else chosen & self.known)


def load_teacher_outputs(
    folder: Path, dataset: SequenceDataset, settings: DistillConfig, *, logger: logging.Logger
) -> TeacherOutputs:
    """Read and check a teacher's files, those of them that the distillation needs.

    The folder is locked meanwhile, so that nobody replaces one file after another has been read. It need not be there
    where `distill.embeddings_file` is all that is needed.

    Raises:
        UserError: a file is missing, does not fit the dataset, or holds impossible values.
    """
    if settings.top_k > dataset.num_items:
        raise UserError(
            f"distill.top_k={settings.top_k}: must be at most {dataset.num_items}, the number of items of "
            f"{dataset.name}"
        )
    own = settings.embeddings_file
    if own is not None and not settings.reads_ranking:
        return TeacherOutputs(embeddings=_own_embeddings(own, dataset) if settings.reads_embeddings else None)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no teacher outputs; run src.exp.run_teacher for dataset {dataset.name} first, "
            "or point paths.teacher_outputs_dir at existing files"
            + (
                ", or, as distill.embeddings_file holds no rankings, set distill.ranking=similarity or distill.lambda=0"
                if own
                else ""
            )
        )
    with _locked_for_reading(folder, logger):
        before = Sighting.of(folder)  # a program that knows nothing of the lock may write there
        outputs = _read_outputs(folder, dataset, settings, logger)
        before.require_same()
        return outputs


@contextmanager
def _locked_for_reading(folder: Path, logger: logging.Logger) -> Iterator[None]:
    """Hold the folder's lock; where this process may only read, it cannot, and reads all the same."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, notify=logger.info))
        except UserError as error:
            logger.info("reading without a lock: %s", error)
        yield


def _read_outputs(
    folder: Path, dataset: SequenceDataset, settings: DistillConfig, logger: logging.Logger
) -> TeacherOutputs:
    manifest = _check_manifest(folder, dataset, logger)
    outputs = TeacherOutputs(manifest_sha256=sha256_file(folder / MANIFEST_FILE) if manifest else None)
    rows = _read_rows(folder, manifest, dataset)
    if rows is not None:
        outputs = outputs.restricted_to(rows, len(dataset.train))
        outputs = replace(outputs, selection=manifest.selection if manifest else None)
        logger.info("the teacher was asked for %d of %d training rows", len(rows), len(dataset.train))
    if settings.reads_embeddings:
        own = settings.embeddings_file
        embeddings = _own_embeddings(own, dataset) if own else _read_embeddings(folder / EMBEDDINGS_FILE, dataset)
        outputs = replace(outputs, embeddings=embeddings)
    if not settings.reads_ranking:
        return outputs
    if manifest and not manifest.has_rankings:
        raise UserError(
            f"{folder / RANKING_FILE}: missing file; the export holds embeddings alone "
            "(teacher.export.rankings=false): export rankings, too, make them from the embeddings, "
            "distill.ranking=similarity, or do without them, distill.lambda=0 or distill.alpha=0"
        )
    ranking = _read_ranking(folder / RANKING_FILE, dataset, rows, settings.top_k)
    confidence = _read_confidence(folder / CONFIDENCE_FILE, dataset, rows)
    if confidence.shape != ranking.shape:
        raise UserError(
            f"{folder / CONFIDENCE_FILE}: {confidence.shape[1]} numbers a line, {RANKING_FILE} has {ranking.shape[1]}; "
            "each distance belongs to the item in the same place"
        )
    if settings.confidence == "per_sequence":
        confidence = _row_distances(folder / ROW_STATS_FILE, dataset, rows)
    return replace(
        outputs,
        ranking=torch.from_numpy(_at_rows(ranking[:, : settings.top_k], rows, dataset)),
        confidence=torch.from_numpy(_at_rows(confidence[:, : settings.top_k].astype(np.float32), rows, dataset)),
    )


def _read_rows(folder: Path, manifest: Manifest | None, dataset: SequenceDataset) -> np.ndarray | None:
    """The training row of each line, int64 ascending, or None where line i belongs to row i."""
    path = folder / ROWS_FILE
    if not path.is_file() or (manifest is not None and ROWS_FILE not in manifest.sha256):
        return None
    rows = read_array(path, max_bytes=8 * len(dataset.train), advice="export the teacher again")
    last = len(dataset.train) - 1
    fits = rows.ndim == 1 and rows.dtype.kind == "i" and len(rows) > 0 and rows[0] >= 0 and rows[-1] <= last
    if not fits or (np.diff(rows) <= 0).any():
        raise UserError(
            f"{path}: must hold training rows of {dataset.name}, integers from 0 to {last}, each larger than the one "
            "before; export the teacher again"
        )
    return rows.astype(np.int64)


def _at_rows(values: np.ndarray, rows: np.ndarray | None, dataset: SequenceDataset) -> np.ndarray:
    """Lines [M, K] put at their training rows: [num_rows, K], zeros elsewhere."""
    if rows is None:
        return values.copy()
    full = np.zeros((len(dataset.train), values.shape[1]), dtype=values.dtype)
    full[rows] = values
    return full


def _row_distances(path: Path, dataset: SequenceDataset, rows: np.ndarray | None) -> np.ndarray:
    """Each line's best distance as the teacher measured it: float [M, 1], finite."""
    if not path.is_file():
        raise UserError(
            f"{path}: missing file; distill.confidence=per_sequence takes each row's distance from it, and only "
            "teachers of this program write it; with other files use distill.confidence=per_candidate"
        )
    count, name = len(dataset.train) if rows is None else len(rows), "raw_best_distance"
    distances = read_arrays(path, [name], max_bytes=8 * len(dataset.train), advice="export the teacher again")[name]
    if distances.shape != (count,) or distances.dtype.kind != "f" or not np.isfinite(distances).all():
        raise UserError(
            f"{path}: raw_best_distance must hold {count} finite numbers, one per exported training row of "
            f"{dataset.name}; it has {distances.dtype} of shape {distances.shape}"
        )
    return distances[:, None]


def _check_manifest(folder: Path, dataset: SequenceDataset, logger: logging.Logger) -> Manifest | None:
    """The manifest, compared with the dataset and the files; None without one."""
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
    damage = find_damage(folder, manifest)
    if damage is not None:
        raise UserError(f"{damage}; export the teacher again")
    return manifest


def _own_embeddings(given: str, dataset: SequenceDataset) -> Tensor:
    """The embeddings in `distill.embeddings_file`, checked as those of an export are."""
    try:
        return _read_embeddings(project_path(given), dataset)
    except UserError as error:
        raise UserError(f"distill.embeddings_file={given}: {error}") from error


def _read_embeddings(path: Path, dataset: SequenceDataset) -> Tensor:
    if not path.is_file():
        raise UserError(f"{path}: missing file; it holds a float tensor [num_items, llm_dim]")
    embeddings = _read_numpy(path) if path.suffix == ".npy" else read_tensors(path)
    if not isinstance(embeddings, Tensor) or embeddings.dim() != 2 or not embeddings.is_floating_point():
        is_array = isinstance(embeddings, Tensor | np.ndarray)
        what = f"{embeddings.dtype} {list(embeddings.shape)}" if is_array else type(embeddings).__name__
        raise UserError(f"{path}: holds {what}; must hold a float tensor [num_items, llm_dim]")
    if len(embeddings) != dataset.num_items:
        raise UserError(
            f"{path}: {len(embeddings)} embeddings, dataset {dataset.name} has {dataset.num_items} items; "
            "one row per item in the order of the item ids"
        )
    if not torch.isfinite(embeddings).all():
        item = int((~torch.isfinite(embeddings)).any(1).nonzero()[0])
        raise UserError(f"{path}: the embedding of item {item} holds NaN or infinity")
    return embeddings.float()


def _read_numpy(path: Path) -> Tensor | np.ndarray:
    """The array of a `.npy` file, as a tensor if it holds floats."""
    values = read_array(path, max_bytes=path.stat().st_size, advice="save it with numpy.save")
    return torch.from_numpy(values.astype(np.float32)) if values.dtype.kind == "f" else values


def _read_matrix(path: Path, dataset: SequenceDataset, rows: np.ndarray | None) -> np.ndarray:
    """Read a text file of one line per training row, or per row of `rows`: float64 [lines, columns], all finite."""
    if not path.is_file():
        raise UserError(f"{path}: missing file; it holds one line per training row")
    text = path.read_text(encoding="utf-8-sig", errors="replace").rstrip()  # blank lines at the end are no rows
    widths = np.array([len(line.split()) for line in text.split("\n")] if text else [], dtype=np.int64)
    if rows is not None and len(widths) != len(rows):
        raise UserError(f"{path}: {len(widths)} lines, {ROWS_FILE} beside it names {len(rows)} rows; one line per row")
    if rows is None and len(widths) != len(dataset.train):
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


def _read_ranking(path: Path, dataset: SequenceDataset, rows: np.ndarray | None, top_k: int) -> np.ndarray:
    """Item ids int64 [lines, columns]."""
    values = _read_matrix(path, dataset, rows)
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
    items = values.astype(np.int64)
    again = np.sort(items, axis=1)
    twice = np.argwhere(again[:, 1:] == again[:, :-1])
    if len(twice):
        line, column = twice[0]
        raise UserError(
            f"{path}:{line + 1}: item id {again[line, column]} stands there twice; give each item one place"
        )
    return items


def _read_confidence(path: Path, dataset: SequenceDataset, rows: np.ndarray | None) -> np.ndarray:
    """Distances float64 [lines, columns], none negative, ascending in each line, but for what rounding does."""
    values = _read_matrix(path, dataset, rows)
    low = np.concatenate([np.zeros((len(values), 1)), values[:, :-1]], axis=1)  # what each must not be below
    falls = np.argwhere(values < low - _ROUNDING * np.maximum(low, 1))
    if len(falls):
        line, column = falls[0]
        found = f"{values[line, column]:g}" + (f" behind {values[line, column - 1]:g}" if column else "")
        raise UserError(
            f"{path}:{line + 1}: {found}; {path.name} holds distances, of 0 or more, ascending as {RANKING_FILE} has "
            "its items best first: write 1 - similarity, or minus the log-probability"
        )
    return values
