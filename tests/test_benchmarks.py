"""The commands of `benchmarks/` run and print one JSON line; how fast anything is, no test asks."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import (
    crash,
    data_processing,
    distillation,
    embeddings,
    epoch,
    fuzz,
    kd_step,
    peers,
    quality,
    serving,
    teacher_export,
    teacher_step,
)
from src.student.evaluator import evaluate_scores

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "raw" / "sample" / "interactions.csv"


@pytest.fixture
def raw_dir(tmp_path) -> str:
    """60 users of the sample in ML-100K's format."""
    log = pd.read_csv(SAMPLE)
    log = log[log["user"] <= 60].assign(rating=5)
    log[["user", "item", "rating", "timestamp"]].to_csv(tmp_path / "u.data", sep="\t", header=False, index=False)
    lines = (f"{item}|Film {item} (1999)|x\n" for item in sorted(log["item"].unique()))
    (tmp_path / "u.item").write_text("".join(lines))
    return str(tmp_path)


@pytest.fixture
def printed(monkeypatch, capsys) -> Callable[..., dict]:
    def run(benchmark, *arguments: str) -> dict:
        monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
        benchmark.main()
        (line,) = capsys.readouterr().out.splitlines()
        return json.loads(line)

    return run


@pytest.fixture
def one_epoch(monkeypatch) -> None:
    settings = quality.student_settings
    for module in (quality, distillation):
        monkeypatch.setattr(module, "student_settings", lambda name: replace(settings(name), num_epochs=1))


def test_data_processing(printed, raw_dir) -> None:
    result = printed(data_processing, "--raw_dir", raw_dir, "--interactions", "60000")
    assert result["ml-100k"]["train_rows"] > 500 and result["synthetic-ml-1m"]["train_rows"] > 10000


def test_epoch(printed, raw_dir, monkeypatch) -> None:
    monkeypatch.setattr(epoch, "REPEATS", 1)
    monkeypatch.setattr(epoch, "evaluation_seconds", lambda: 0.0)
    assert {"packed_s", "rows_s", "evaluate_6040_users_s"} <= printed(epoch, "--raw_dir", raw_dir).keys()


def test_quality(printed, raw_dir, one_epoch) -> None:
    result = printed(quality, "--raw_dir", raw_dir, "--seeds", "1", "2", "--students", "sasrec", "sasrec_plus")
    assert result["markov"]["masked"][0] > result["popular"]["masked"][0]
    assert len(result["sasrec"]["shown"]) == len(result["sasrec_plus"]["shown"]) == 2


def test_distillation(printed, raw_dir, one_epoch, monkeypatch) -> None:
    config = distillation.DistillConfig
    monkeypatch.setattr(distillation, "DistillConfig", lambda *a, **options: config(*a, num_epochs=1, **options))
    result = printed(distillation, "--raw_dir", raw_dir, "--seeds", "1")
    assert set(distillation.VARIANTS) < result.keys()


def test_embeddings(printed, tmp_path, monkeypatch) -> None:
    """Of embeddings that say which items follow one another, hidden under what all have in common."""
    monkeypatch.setattr(embeddings, "LAST", 1)
    chosen = ["dataset=sample", f"dataset.raw_dir={SAMPLE.parent}", f"paths.data_dir={tmp_path}"]
    dataset = embeddings.chosen_dataset(chosen)
    test = dataset.test
    last, vectors = test.items[test.pos - 1], torch.eye(dataset.num_items)
    for one, other in zip(last, test.targets, strict=True):
        vectors[one, other] = vectors[other, one] = 1
    for name, shift in (("plain", 0.0), ("shifted", 5.0)):
        (tmp_path / name).mkdir()
        torch.save(vectors + shift, tmp_path / name / "all_embeddings.pt")
    folders = [str(tmp_path / name) for name in ("plain", "shifted")]
    result = printed(embeddings, *chosen, "--exports", *folders, "--dims", "16", "32", "9999")
    plain, shifted = (result["exports"][folder] for folder in folders)
    assert plain.keys() == {"embedding", "width", "raw", "centred", "whitened_16", "whitened_32"}
    assert plain["raw"] > 2 * result["random"]
    assert shifted["raw"] < plain["raw"] and shifted["centred"] == pytest.approx(plain["centred"], abs=0.01)
    assert result["users"] == len(test) and result["tf_idf"] > 0


def test_embeddings_of_other_data_are_refused(printed, tmp_path) -> None:
    torch.save(torch.ones(3, 2), tmp_path / "all_embeddings.pt")
    chosen = ["dataset=sample", f"dataset.raw_dir={SAMPLE.parent}", f"paths.data_dir={tmp_path}"]
    with pytest.raises(SystemExit, match=r"error: .*all_embeddings.pt: 3 embeddings, dataset sample has \d+ items"):
        printed(embeddings, *chosen, "--exports", str(tmp_path))


def test_tf_idf_is_what_its_formula_says() -> None:
    rows = embeddings.tf_idf(["red red lamp", "The RED door", "a"]).toarray()  # words: door, lamp, red, the
    rare, common = np.log(4 / 2) + 1, np.log(4 / 3) + 1
    assert rows[0] == pytest.approx(np.array([0, rare, 2 * common, 0]) / np.hypot(rare, 2 * common))
    assert rows[1] == pytest.approx(np.array([rare, 0, common, rare]) / (2 * rare**2 + common**2) ** 0.5)
    assert not rows[2].any()


def test_fuzz(printed) -> None:
    """Each reader reads some of its damaged files and refuses the others; else this would exit with 1."""
    found = printed(fuzz, "--inputs", "40")
    assert found.keys() == fuzz.READERS.keys()
    for name, counts in found.items():
        assert counts["read"] > 0 and counts["refused"] > 0, name
        assert counts == {"read": counts["read"], "refused": 40 - counts["read"]}, name


def test_a_fuzzer_that_could_not_find_anything_would_be_none(printed, monkeypatch) -> None:
    """Of a reader that raises, never comes back, ends the process, or takes more than a gigabyte."""
    kept: list[bytes] = []  # what is not touched, such as bytes(n), would take nothing

    def read(folder: Path) -> bool:
        damage = (folder / "file.txt").read_text(errors="replace")
        if damage == "sound":
            return True
        wrong = (lambda: 1 / 0, lambda: os._exit(3), turn, lambda: kept.append(b"x" * much))
        return wrong[len(damage) % 4]()

    def turn() -> None:
        while True:
            pass

    much = (fuzz.MEGABYTES + 100) << 20
    reader = fuzz.Reader(lambda folder: (folder / "file.txt").write_text("sound"), ("file.txt",), read)
    monkeypatch.setattr(fuzz, "READERS", {"bad": reader})
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    with pytest.raises(SystemExit, match="1"):
        printed(fuzz, "--inputs", "20", "--readers", "bad")


def test_serving(printed, monkeypatch) -> None:
    monkeypatch.setattr(serving, "ROUNDS", 1)
    result = printed(serving, "--histories", "40")
    assert result["same_answers"] == 1.0 and (result["histories"], result["items"]) == (40, 12_101)
    assert min(result["torch_rows_s"], result["onnx_rows_s"]) > 0


IN_THEIR_ORDER = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {programs!r})
from common import Clock, read, report
folder = Path(sys.argv[1])
settings, log = read(folder)
clock = Clock(settings["seconds"], settings["clock"])

def lists(part):
    seen = [set(log["item"][(log["user"] == user) & (log["part"] < part)]) for user in range(log["user"].max() + 1)]
    return np.array([[item for item in range(log["item"].max() + 1) if item not in items][:10] for items in seen])

for epoch in (1, 2):
    clock.start()
    clock.stop()
    report(folder, epoch, clock, lists)
"""


@pytest.fixture
def chosen(raw_dir, tmp_path) -> list[str]:
    return ["dataset=movielens", f"dataset.raw_dir={raw_dir}", f"paths.data_dir={tmp_path}", "student.num_epochs=2"]


def test_peers(printed, chosen, tmp_path, monkeypatch) -> None:
    """A peer that gives all items in their order is judged as our own evaluation judges that."""
    (tmp_path / "with_rectools.py").write_text(IN_THEIR_ORDER.format(programs=str(peers.PROGRAMS)))
    monkeypatch.setattr(peers, "PROGRAMS", tmp_path)
    monkeypatch.setattr(peers, "environment_of", lambda peer, folder: Path(sys.executable))
    found = printed(
        peers,
        *chosen,
        *("--peers", str(tmp_path), "--only", "rectools", "ours", "--seconds", "1e9"),
        *("--plot", str(tmp_path / "peers.png")),
    )
    dataset = peers.load_dataset(peers.settings_of(chosen).dataset, tmp_path, logging.getLogger())
    for part, rows in (("valid", dataset.valid), ("test", dataset.test)):
        scores = -torch.arange(float(dataset.num_items))
        own = evaluate_scores(lambda index: scores.repeat(len(index), 1), rows, dataset.num_items, [10])  # noqa: B023
        assert found["rectools"][part] == pytest.approx(own.metrics_masked["ndcg@10"], rel=1e-3)
    assert [point["epoch"] for point in found["curves"]["ours"]] == [1, 2]
    assert 0 < found["ours"]["test"] < 1 and (tmp_path / "peers.png").stat().st_size > 10_000


def test_a_peer_that_cannot_be_installed_is_named(printed, chosen, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(peers.PEERS, "recbole", [str(tmp_path / "absent.whl")])
    with pytest.raises(SystemExit, match="recbole could not be installed into"):
        printed(peers, *chosen, "--peers", str(tmp_path / "peers"), "--only", "recbole")


def test_teacher_export(printed, monkeypatch) -> None:
    """It fails by itself if the two ways rank a row differently."""
    monkeypatch.setattr(teacher_export, "TRAIN_ROWS", 32)
    monkeypatch.setattr(teacher_export, "PRETRAIN_STEPS", 2)
    assert printed(teacher_export, "--rows", "9", "--rounds", "1")["cpu"]["equal_rows"] == 9


def test_teacher_step(printed, monkeypatch, ilora_folder) -> None:
    monkeypatch.setattr(teacher_step, "STEPS", 5)
    assert printed(teacher_step)["loss_difference"] < 1e-5


def test_kd_step(printed, monkeypatch, dllm2rec_folder) -> None:
    monkeypatch.setattr(kd_step, "STEPS", 3)
    assert printed(kd_step)["loss_difference"] < 1e-5


def test_crash(tmp_path) -> None:
    """As a process: its stages are forks of it. They end as they would have without the signals."""
    command = [sys.executable, "-m", "benchmarks.crash", "--kills", "3", "--stages", "baseline"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300
    )
    result = json.loads(done.stdout)
    assert (result["kills"], result["by_stage"], result["problems"]) == (3, {"baseline": 3}, [])
    assert sum(result.get(name, 0) for name in ("SIGKILL", "SIGTERM", "SIGINT")) == 3
    assert list(tmp_path.iterdir()) == []
    assert done.returncode == 0


def test_crash_tells_what_is_other_than_it_was(tmp_path) -> None:
    for name, text in {
        "a.csv": "1",
        "b.log": "one",
        "c.md": "| 1.5 s  |",
        "d.json": '{"x": 1, "completed": 2}',
    }.items():
        (tmp_path / name).write_text(text)
    before = crash.contents(tmp_path)
    for name, text in {"b.log": "two", "c.md": "| 12.25 s |", "d.json": '{"x": 1, "completed": 3}'}.items():
        (tmp_path / name).write_text(text)
    assert crash.differences(before, crash.contents(tmp_path)) == []
    for name, text in {"a.csv": "2", "c.md": "| 1.5 h  |", "d.json": '{"x": 2}', ".e.part": ""}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "b.log").unlink()
    differs = [f"{name} differs" for name in ("a.csv", "c.md", "d.json")]
    assert sorted(crash.differences(before, crash.contents(tmp_path))) == sorted(
        [*differs, "b.log is missing", ".e.part is left over"]
    )
