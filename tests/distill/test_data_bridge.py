"""Teacher files to tensors: what fits is read, what does not is refused by name."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.files import sha256_file
from src.core.teacher_files import (
    CONFIDENCE_FILE,
    EMBEDDINGS_FILE,
    MANIFEST_FILE,
    RANKING_FILE,
    ROW_STATS_FILE,
    ROWS_FILE,
    ChosenRows,
    read_manifest,
    write_teacher_files,
)
from src.distill import data_bridge
from src.distill.config import DistillConfig
from src.distill.data_bridge import load_teacher_outputs

TOP_N, LLM_DIM = 4, 3


@pytest.fixture
def dataset(make_dataset) -> SequenceDataset:
    """6 items; training rows 0 and 1 of the first user, 2 of the second."""
    return make_dataset([[0, 1, 2, 3, 4], [5, 4, 3, 2]], num_items=6)


RANKING = np.array([[5, 4, 3, 2], [0, 1, 2, 3], [3, 0, 5, 1]])
DISTANCES = np.array([[0, 0.25, 0.5, 1], [0, 0.125, 0.75, 1], [0, 0.5, 0.5, 1]])
EMBEDDINGS = torch.arange(18.0).reshape(6, LLM_DIM) / 4
STATS = {
    "raw_best_distance": np.array([1.5, 2.0, 2.5]),
    "log_prob": np.array([-3.0, -4.0, -5.0]),
    "valid": np.array([True, True, False]),
}


def about(dataset: SequenceDataset) -> dict:
    return {
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "engine": "native",
        "method": "likelihood",
        "candidates": "retrieval (5)",
        "confidence": "minmax",
        "base_model": "ilora_tiny",
        "adapter_sha256": "a" * 64,
        "in_sample_rows": 2,
        "seed": 7,
        "git_commit": "c" * 40,
    }


def write(folder: Path, dataset: SequenceDataset, **changes: object) -> None:
    files = {"embeddings": EMBEDDINGS, "ranking": RANKING, "distances": DISTANCES, "row_stats": STATS}
    write_teacher_files(folder, about=about(dataset), **{**files, **changes})


@pytest.fixture
def folder(tmp_path, dataset):
    write(tmp_path / "outputs", dataset)
    return tmp_path / "outputs"


def settings(top_k: int = 3, embeddings: bool = True, ranking: bool = True, **options) -> DistillConfig:
    """A distillation that needs these parts of a teacher's files."""
    weights = {"ed_weight": 0.3 if embeddings else 0.0, "alpha": 0.5 if ranking else 0.0}
    return DistillConfig(name="dllm2rec", top_k=top_k, **weights, **options)


@pytest.fixture
def load(folder, dataset, logger):
    def run(of: SequenceDataset = dataset, **options):
        return load_teacher_outputs(folder, of, settings(**options), logger=logger)

    return run


@pytest.fixture
def refused(folder, load):
    """Without a manifest, replace one file by some text and expect an error."""

    def run(name: str, content: str, message: str) -> None:
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=message):
            load()

    return run


def lines(rows) -> str:
    return "".join(" ".join(str(value) for value in row) + "\n" for row in rows)


# --- what fits ----------------------------------------------------------------------------------------------


def test_with_a_manifest(load, folder, caplog):
    outputs = load(top_k=3)

    assert torch.equal(outputs.embeddings, EMBEDDINGS)
    assert outputs.ranking.tolist() == [[5, 4, 3], [0, 1, 2], [3, 0, 5]]
    assert outputs.confidence.tolist() == [[0, 0.25, 0.5], [0, 0.125, 0.75], [0, 0.5, 0.5]]
    assert (outputs.embeddings.dtype, outputs.ranking.dtype, outputs.confidence.dtype) == (
        torch.float32,
        torch.int64,
        torch.float32,
    )
    assert outputs.manifest_sha256 == sha256_file(folder / MANIFEST_FILE)
    assert caplog.records == []


def test_without_a_manifest_it_warns(load, folder, caplog):
    (folder / MANIFEST_FILE).unlink()
    (folder / ROW_STATS_FILE).unlink()

    outputs = load(top_k=4)

    assert outputs.ranking.tolist() == RANKING.tolist()
    assert outputs.manifest_sha256 is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no manifest.json, so the order of the rows cannot be verified" in record.getMessage()


def test_only_what_is_asked_for_is_read(load, folder):
    (folder / MANIFEST_FILE).unlink()
    (folder / EMBEDDINGS_FILE).unlink()
    outputs = load(embeddings=False)
    assert (outputs.embeddings, outputs.ranking.shape) == (None, (3, 3))

    torch.save(EMBEDDINGS, folder / EMBEDDINGS_FILE)
    (folder / RANKING_FILE).unlink()
    (folder / CONFIDENCE_FILE).unlink()
    outputs = load(ranking=False)
    assert (outputs.ranking, outputs.confidence, outputs.embeddings.shape) == (None, None, (6, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_another_precision(load, folder, dtype):
    (folder / MANIFEST_FILE).unlink()
    torch.save(EMBEDDINGS.to(dtype), folder / EMBEDDINGS_FILE)
    assert torch.equal(load().embeddings, EMBEDDINGS)  # quarters up to 4.25: exact in all of them


def test_scientific_notation_and_windows_lines(load, folder):
    (folder / MANIFEST_FILE).unlink()
    (folder / RANKING_FILE).write_bytes(b"5.0 4 3\r\n0 1 2e0\r\n3 0 5\r\n")
    (folder / CONFIDENCE_FILE).write_text("0 1e-3 1\n0 .5 1.\n0 1 1\n")
    outputs = load()
    assert outputs.ranking.tolist() == [[5, 4, 3], [0, 1, 2], [3, 0, 5]]
    assert outputs.confidence[0].tolist() == pytest.approx([0, 1e-3, 1])


def test_moving_to_a_device_keeps_everything(load):
    outputs = load()
    moved = outputs.to(torch.device("cpu"))
    assert torch.equal(moved.ranking, outputs.ranking)
    assert torch.equal(moved.confidence, outputs.confidence)
    assert moved.manifest_sha256 == outputs.manifest_sha256
    assert load(embeddings=False, ranking=False).to(torch.device("cpu")).ranking is None


# --- what the writer writes ---------------------------------------------------------------------------------


def test_manifest_describes_the_files(folder, dataset):
    manifest = read_manifest(folder)

    assert (manifest.num_rows, manifest.num_items, manifest.top_n, manifest.llm_dim) == (3, 6, TOP_N, LLM_DIM)
    assert (manifest.format_version, manifest.dataset, manifest.seed) == (1, "tiny", 7)
    names = (EMBEDDINGS_FILE, RANKING_FILE, CONFIDENCE_FILE)
    assert manifest.sha256 == {name: sha256_file(folder / name) for name in names}


def test_text_files_have_the_layout_upstream_reads(folder):
    assert (folder / RANKING_FILE).read_text() == "5 4 3 2\n0 1 2 3\n3 0 5 1\n"
    assert (folder / CONFIDENCE_FILE).read_text() == "0 0.25 0.5 1\n0 0.125 0.75 1\n0 0.5 0.5 1\n"
    with np.load(folder / ROW_STATS_FILE) as stats:
        assert {name: stats[name].tolist() for name in stats} == {k: v.tolist() for k, v in STATS.items()}


def test_an_interrupted_export_leaves_no_manifest(folder, dataset, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savetxt", fail)
    with pytest.raises(UserError, match="disk full"):
        write(folder, dataset)
    assert read_manifest(folder) is None


# --- what does not fit --------------------------------------------------------------------------------------


def test_no_folder(dataset, logger, tmp_path):
    message = "nowhere: no teacher outputs; run src.exp.run_teacher for dataset tiny first, or point paths"
    with pytest.raises(UserError, match=message):
        load_teacher_outputs(tmp_path / "nowhere", dataset, settings(), logger=logger)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", [EMBEDDINGS_FILE, RANKING_FILE, CONFIDENCE_FILE])
@pytest.mark.parametrize("manifest", [True, False])
def test_missing_file(load, folder, name, manifest):
    (folder / name).unlink()
    if not manifest:
        (folder / MANIFEST_FILE).unlink()
    with pytest.raises(UserError, match=f"{name}: missing file"):
        load()


def test_more_candidates_than_items(load):
    with pytest.raises(UserError, match="distill.top_k=7: must be at most 6, the number of items of tiny"):
        load(top_k=7)


def test_more_candidates_than_columns(load):
    message = (
        r"myrank_train\.txt: 4 items a line, distill\.top_k=5; lower it or export with a larger teacher\.export\.top_n"
    )
    with pytest.raises(UserError, match=message):
        load(top_k=5)


def test_manifest_of_another_dataset(load, make_dataset):
    other = make_dataset([[0, 1, 2, 3, 4], [5, 4, 3, 1]], num_items=6, name="other")
    message = (
        rf"files of dataset tiny \([0-9a-f]{{12}}, 3 rows\), this run uses other \({other.fingerprint[:12]}, 3 rows\)"
    )
    with pytest.raises(UserError, match=message):
        load(of=other)


@pytest.mark.parametrize("name", [EMBEDDINGS_FILE, RANKING_FILE, CONFIDENCE_FILE])
def test_file_altered_after_the_manifest(load, folder, name):
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match=rf"{name}: differs from what manifest\.json describes"):
        load()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"format_version": 2}, "format_version=2, this program reads 1; export the teacher again"),
        ({}, "format_version=None"),
        ([1], "format_version=None"),
        ({"format_version": 1, "dataset": "tiny"}, "not a teacher manifest: dataset_fingerprint is missing"),
    ],
)
def test_foreign_manifest(load, folder, content, message):
    (folder / MANIFEST_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load()


def test_damaged_manifest(load, folder):
    (folder / MANIFEST_FILE).write_text('{"format_version": 1')
    with pytest.raises(UserError, match=r"manifest\.json: not a JSON file"):
        load()


@pytest.mark.parametrize("name", [RANKING_FILE, CONFIDENCE_FILE])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_wrong_number_of_rows(refused, name, count):
    refused(
        name,
        lines([[0, 1, 2]] * count),
        f"{name}: {count} lines, dataset tiny has 3 training rows; line i has to belong to training row i",
    )


@pytest.mark.parametrize("name", [RANKING_FILE, CONFIDENCE_FILE])
def test_ragged_line(refused, name):
    refused(
        name,
        "0 1 2\n0 1 2\n0 1\n",
        f"{name}:3: 2 numbers, line 1 has 3; all lines must be equally long",
    )


def test_empty_lines(refused):
    refused(RANKING_FILE, "\n\n\n", f"{RANKING_FILE}: 0 lines")
    refused(RANKING_FILE, "0 1 2\n\n0 1 2\n", f"{RANKING_FILE}:2: 0 numbers, line 1 has 3")


def test_a_byte_order_mark_and_blank_lines_at_the_end_are_no_rows(load, folder):
    (folder / MANIFEST_FILE).unlink()
    before = load()
    for name in (RANKING_FILE, CONFIDENCE_FILE):
        content = (folder / name).read_text().replace("\n", "\r\n")
        (folder / name).write_bytes(b"\xef\xbb\xbf" + content.encode() + b" \r\n\n")
    after = load()
    assert torch.equal(before.ranking, after.ranking) and torch.equal(before.confidence, after.confidence)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("0.87 0.61 0.05", "0.61 behind 0.87"),  # similarities
        ("-0.29 -6.3 -7.4", "-0.29"),  # log-probabilities
        ("-0.87 -0.61 -0.05", "-0.87"),  # minus similarities
        ("0 2 1", "1 behind 2"),
    ],
)
def test_what_is_no_ascending_distance(refused, line, what):
    message = (
        f"{CONFIDENCE_FILE}:2: {what}; confidence_train.txt holds distances, of 0 or more, ascending as "
        "myrank_train.txt has its items best first: write 1 - similarity, or minus the log-probability"
    )
    refused(CONFIDENCE_FILE, f"0 1 2 3\n{line} 3\n0 1 2 3\n", message)


def test_distances_may_fall_by_rounding(load, folder):
    (folder / MANIFEST_FILE).unlink()
    (folder / CONFIDENCE_FILE).write_text("-1e-7 0 1 1\n2 1.99999 3 3\n7 7 7 7\n")
    assert load(top_k=2).confidence.tolist() == pytest.approx(np.array([[-1e-7, 0], [2, 1.99999], [7, 7]]))


def test_an_item_stands_once_in_a_line(refused):
    refused(RANKING_FILE, "0 1 2\n0 1 2\n3 4 3\n", f"{RANKING_FILE}:3: item id 3 stands there twice; give each item")


@pytest.mark.parametrize("name", [RANKING_FILE, CONFIDENCE_FILE])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_not_finite(refused, name, value):
    refused(name, f"0 1 2\n0 1 {value}\n0 1 2\n", f"{name}:2: holds NaN or infinity")


@pytest.mark.parametrize("name", [RANKING_FILE, CONFIDENCE_FILE])
def test_no_number(refused, name):
    refused(name, "0 1 2\n0 1 two\n0 1 2\n", f"{name}: holds something that is no number .*two")


@pytest.mark.parametrize("item", ["-1", "6", "1.5"])
def test_impossible_item(refused, item):
    refused(
        RANKING_FILE,
        f"0 1 2\n0 1 2\n3 {item} 2\n",
        rf"{RANKING_FILE}:3: item id {item}; ids must be integers from 0 to 5",
    )


def test_one_distance_per_row(load):
    outputs = load(top_k=2, confidence="per_sequence")

    assert outputs.confidence[:, 0].tolist() == pytest.approx(STATS["raw_best_distance"].tolist())
    assert (outputs.confidence.shape[1], outputs.ranking.shape[1]) == (1, 2)


@pytest.mark.parametrize(
    "stats, message",
    [
        (None, "missing file; distill.confidence=per_sequence"),
        ({"valid": np.ones(3)}, "holds no array raw_best_distance"),
        (
            {"raw_best_distance": np.ones(2)},
            r"raw_best_distance must hold 3 finite numbers, .* it has float64 of shape \(2,\)",
        ),
        ({"raw_best_distance": np.array(["a"] * 3)}, "raw_best_distance must hold 3 finite numbers, .* it has <U1"),
        ({"raw_best_distance": np.array([1.0, np.nan, 1.0])}, "raw_best_distance must hold 3 finite numbers"),
    ],
)
def test_no_distance_per_row(folder, load, stats, message):
    (folder / "row_stats.npz").unlink()
    if stats is not None:
        np.savez(folder / "row_stats.npz", **stats)
    with pytest.raises(UserError, match=f"row_stats.npz: {message}"):
        load(confidence="per_sequence")


def test_confidences_of_another_width(refused):
    refused(
        CONFIDENCE_FILE,
        lines([[0, 1, 2]] * 3),
        f"{CONFIDENCE_FILE}: 3 numbers a line, {RANKING_FILE} has 4; each distance belongs to the item",
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (torch.zeros(5, 3), "5 embeddings, dataset tiny has 6 items"),
        (torch.zeros(7, 3), "7 embeddings, dataset tiny has 6 items"),
        (torch.zeros(6), r"holds torch.float32 \[6\]; must hold a float tensor \[num_items, llm_dim\]"),
        (torch.zeros(6, 3, dtype=torch.int64), "holds torch.int64 .*; must hold a float tensor"),
        ({"weight": torch.zeros(6, 3)}, "holds dict; must hold a float tensor"),
        (EMBEDDINGS.clone().index_fill(0, torch.tensor([4]), torch.nan), "the embedding of item 4 holds NaN"),
        (EMBEDDINGS.clone().index_fill(0, torch.tensor([2]), torch.inf), "the embedding of item 2 holds NaN or inf"),
    ],
)
def test_embeddings_that_do_not_fit(load, folder, content, message):
    (folder / MANIFEST_FILE).unlink()
    torch.save(content, folder / EMBEDDINGS_FILE)
    with pytest.raises(UserError, match=message):
        load()


# --- embeddings of one's own ---------------------------------------------------------------------------------


def save_own(folder: Path, array: object, ending: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / f"own{ending}"
    if ending == ".npy":
        np.save(path, array, allow_pickle=True)
    else:
        torch.save(torch.from_numpy(array), path)
    return str(path)


@pytest.mark.parametrize(
    "ending, kind", [(".npy", "float16"), (".npy", ">f8"), (".npy", "float32"), (".pt", "float16"), (".pt", "float64")]
)
def test_own_embeddings_take_the_place_of_the_exported_ones(load, tmp_path, ending, kind):
    own = (EMBEDDINGS.numpy() + 100).astype(kind)
    outputs = load(embeddings_file=save_own(tmp_path, own, ending))
    assert torch.equal(outputs.embeddings, EMBEDDINGS + 100) and outputs.embeddings.dtype == torch.float32
    assert outputs.ranking.tolist() == [[5, 4, 3], [0, 1, 2], [3, 0, 5]]  # still the teacher's
    assert load(embeddings=False, embeddings_file="nowhere.npy").embeddings is None


def test_own_embeddings_alone_need_no_export(dataset, logger, tmp_path):
    file = save_own(tmp_path, EMBEDDINGS.numpy(), ".npy")
    alone = settings(ranking=False, embeddings_file=file)
    outputs = load_teacher_outputs(tmp_path / "nowhere", dataset, alone, logger=logger)
    assert torch.equal(outputs.embeddings, EMBEDDINGS) and outputs.ranking is None
    with pytest.raises(UserError, match="nowhere: no teacher outputs; .*holds no rankings, set distill.ranking="):
        load_teacher_outputs(tmp_path / "nowhere", dataset, settings(embeddings_file=file), logger=logger)


@pytest.mark.parametrize("ending", [".npy", ".pt"])
@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((5, 3)), "5 embeddings, dataset tiny has 6 items; one row per item in the order of the item ids"),
        (np.zeros(6), r"holds torch.float(32|64) \[6\]; must hold a float tensor"),
        (np.zeros((6, 3), dtype=np.int64), r"holds (torch.)?int64 \[6, 3\]; must hold a float tensor"),
        (np.where(np.arange(6)[:, None] == 4, np.nan, np.zeros((6, 3))), "the embedding of item 4 holds NaN"),
    ],
)
def test_own_embeddings_that_do_not_fit(load, tmp_path, ending, array, message):
    file = save_own(tmp_path, array, ending)
    with pytest.raises(UserError, match=f"^distill.embeddings_file={file}: {file}: {message}"):
        load(embeddings_file=file)


def test_own_embeddings_that_are_not_there_or_hold_objects(load, tmp_path):
    with pytest.raises(UserError, match=r"distill.embeddings_file=no.npy: /.*no.npy: missing file"):
        load(embeddings_file="no.npy")
    objects = save_own(tmp_path, np.full((6, 3), print), ".npy")
    with pytest.raises(UserError, match="own.npy: not an array file, or a damaged one .*it holds object"):
        load(embeddings_file=objects)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"embeddings_file": "own.npz"}, "distill.embeddings_file='own.npz': must be null or a file .npy or .pt"),
        (
            {"embeddings_file": "own.npy", "teacher": "tfidf"},
            "distill.embeddings_file='own.npy': must be null with distill.teacher=tfidf, which has its own",
        ),
    ],
)
def test_own_embeddings_where_they_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        settings(**options)


@pytest.mark.parametrize("content", [b"", b"no tensor at all", b"PK\x03\x04 half a zip file"])
def test_embeddings_that_are_no_tensor_file(load, folder, content):
    (folder / MANIFEST_FILE).unlink()
    (folder / EMBEDDINGS_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"all_embeddings\.pt: a damaged file, or not a file written by torch\.save"):
        load()


class _Malicious:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_pickle_is_never_executed(load, folder, tmp_path, zip_format):
    trace = tmp_path / "executed"
    (folder / MANIFEST_FILE).unlink()
    torch.save(_Malicious(trace), folder / EMBEDDINGS_FILE, _use_new_zipfile_serialization=zip_format)

    with pytest.raises(UserError, match=r"all_embeddings\.pt: the pickle names posix\.mkdir, .* it was not executed"):
        load()
    assert not trace.exists()

    torch.load(folder / EMBEDDINGS_FILE, weights_only=False)  # the trap itself works
    assert trace.exists()


# --- while somebody exports ---------------------------------------------------------------------------------


def test_a_reader_waits_for_the_export_that_is_being_written(load, folder, caplog):
    """Another process holds the folder's lock until it has replaced the ranking and removed the manifest."""
    held = (
        "import sys, time; from pathlib import Path; from src.core.artefacts import locked\n"
        "folder = Path(sys.argv[1])\n"
        "with locked(folder):\n"
        "    print('held', flush=True); sys.stdin.readline(); time.sleep(0.3)\n"
        "    (folder / 'manifest.json').unlink(); (folder / 'myrank_train.txt').write_text('0 1 2 3\\n' * 3)\n"
    )
    command = [sys.executable, "-c", held, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "held\n"
        writer.stdin.write("go on\n")
        writer.stdin.flush()
        with caplog.at_level("INFO"):
            outputs = load()

    assert "in use by process" in caplog.text and "waiting" in caplog.text
    assert outputs.ranking.tolist() == [[0, 1, 2]] * 3


def test_a_folder_that_cannot_be_locked_is_read_all_the_same(load, monkeypatch):
    def refuse(folder, *, notify):
        raise UserError(f"{folder}: cannot be written to")

    monkeypatch.setattr(data_bridge, "locked", refuse)
    assert load().ranking.shape == (3, 3)


def test_files_that_are_replaced_while_they_are_read_are_no_mixture(folder, dataset, load, monkeypatch):
    """By a program that knows nothing of the lock."""
    read = data_bridge._read_ranking

    def read_and_replace(*args):
        ranking = read(*args)
        write(folder, dataset, distances=DISTANCES / 2)
        return ranking

    monkeypatch.setattr(data_bridge, "_read_ranking", read_and_replace)
    with pytest.raises(UserError, match=r"all_embeddings\.pt: was changed while it was read; start the same command"):
        load()


# --- a teacher that was asked for some rows -----------------------------------------------------------------


@pytest.fixture
def partial(tmp_path, dataset):
    """Rows 0 and 2 of three."""
    chosen = ChosenRows(np.array([0, 2]), "random, budget_ratio 0.67")
    stats = {name: values[[0, 2]] for name, values in STATS.items()}
    lines = {"ranking": RANKING[[0, 2]], "distances": DISTANCES[[0, 2]], "row_stats": stats}
    write(tmp_path / "partial", dataset, rows=chosen, **lines)
    return tmp_path / "partial"


def load_partial(folder, dataset, logger, **options):
    return load_teacher_outputs(folder, dataset, settings(**options), logger=logger)


def test_a_partial_export_is_joined_by_row(partial, dataset, logger):
    outputs = load_partial(partial, dataset, logger)
    assert outputs.known.tolist() == [True, False, True]
    assert outputs.ranking.tolist() == [[5, 4, 3], [0, 0, 0], [3, 0, 5]]
    assert outputs.confidence.tolist() == [[0, 0.25, 0.5], [0, 0, 0], [0, 0.5, 0.5]]
    assert outputs.selection == "random, budget_ratio 0.67"
    assert load_partial(partial, dataset, logger, confidence="per_sequence").confidence.tolist() == [[1.5], [0], [2.5]]
    assert load_partial(partial, dataset, logger, ranking=False).known.tolist() == [True, False, True]


def test_the_manifest_of_a_partial_export_lists_its_rows(partial, folder):
    manifest = read_manifest(partial)
    assert manifest.num_rows == 2 and manifest.sha256[ROWS_FILE] == sha256_file(partial / ROWS_FILE)
    assert np.load(partial / ROWS_FILE).tolist() == [0, 2]
    assert read_manifest(folder).selection is None and not (folder / ROWS_FILE).exists()


def test_a_whole_export_over_a_partial_one_leaves_no_rows_file(partial, dataset, logger):
    write(partial, dataset)
    assert not (partial / ROWS_FILE).exists()
    assert load_partial(partial, dataset, logger).known is None


def test_a_partial_export_without_manifest_is_joined_by_its_rows_file(partial, dataset, logger):
    (partial / MANIFEST_FILE).unlink()
    assert load_partial(partial, dataset, logger).known.tolist() == [True, False, True]


def test_a_partial_export_without_its_rows_file_is_refused(partial, dataset, logger):
    (partial / ROWS_FILE).unlink()
    with pytest.raises(UserError, match=f"{ROWS_FILE}: missing file, the manifest names it"):
        load_partial(partial, dataset, logger)
    (partial / MANIFEST_FILE).unlink()
    with pytest.raises(UserError, match="2 lines, dataset tiny has 3 training rows"):
        load_partial(partial, dataset, logger)


@pytest.mark.parametrize("rows", [[2, 0], [0, 0], [0, 3], [-1, 0], [], [[0, 2]], [0.0, 2.0]])
def test_rows_that_are_no_training_rows_are_refused(partial, dataset, logger, rows):
    (partial / MANIFEST_FILE).unlink()
    np.save(partial / ROWS_FILE, np.array(rows))
    with pytest.raises(UserError, match=f"{ROWS_FILE}: must hold training rows of tiny, integers from 0 to 2"):
        load_partial(partial, dataset, logger)


def test_another_number_of_rows_than_lines_is_refused(partial, dataset, logger):
    (partial / MANIFEST_FILE).unlink()
    np.save(partial / ROWS_FILE, np.array([0, 1, 2]))
    with pytest.raises(UserError, match=f"{RANKING_FILE}: 2 lines, {ROWS_FILE} beside it names 3 rows"):
        load_partial(partial, dataset, logger)


def test_a_damaged_rows_file_is_refused(partial, dataset, logger):
    (partial / MANIFEST_FILE).unlink()
    (partial / ROWS_FILE).write_text("0 2\n")
    with pytest.raises(UserError, match=f"{ROWS_FILE}: not an array file"):
        load_partial(partial, dataset, logger)
