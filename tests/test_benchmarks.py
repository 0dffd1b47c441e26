"""The commands of `benchmarks/` run and print one JSON line; how fast anything is, no test asks."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import (
    catalogue,
    crash,
    data_processing,
    distillation,
    embeddings,
    epoch,
    full_size,
    fuzz,
    kd_step,
    peers,
    quality,
    serving,
    teacher_export,
    teacher_step,
)
from src.core.data_utils import load_dataset
from src.core.datasets.sample import SampleConfig
from src.student.evaluator import evaluate_scores
from src.teacher.config import TeacherConfig

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


def test_data_processing_grows(printed, tmp_path) -> None:
    result = printed(data_processing, "--interactions", "60000", "--millions", ".01", "--plot", str(tmp_path / "a.png"))
    (one,) = result["growth"]
    assert one["interactions"] == 10000 and one["process_train_rows"] == one["cached_train_rows"] > 9000
    assert one["batch_batches"] == -(-one["process_train_rows"] // 1024) and one["batch_gib"] > 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_epoch(printed, raw_dir, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(epoch, "evaluation_seconds", lambda: 0.0)
    arguments = ["dataset=movielens", f"dataset.raw_dir={raw_dir}", f"paths.data_dir={tmp_path}", "student=sasrec_plus"]
    result = printed(epoch, *arguments, "--repeats", "1")
    assert {"padded / packed", "before / packed", "rows / packed", "validation_s"} <= result.keys()
    assert result["filled"]["padded"] < result["filled"]["packed"] <= 1

    small = printed(
        epoch, *arguments, "student=gru4rec", "student.loss=sampled_softmax", "--steps", "1", "--repeats", "1"
    )
    assert "before / packed" not in small and "validation_s" not in small and small["steps"] == 1


def test_catalogue(printed) -> None:
    result = printed(catalogue, "--items", "2000", "--width", "8", "--targets", "40")
    assert {"step_s", "memory_mib"} <= result["ce"].keys() == result["whole"].keys() == result["sampled_softmax"].keys()
    assert result["ranking"]["million_users_h"] > 0


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
    found = printed(fuzz, "--inputs", "12")
    assert found.keys() == fuzz.READERS.keys()
    for name, counts in found.items():
        assert counts["read"] > 0 and counts["refused"] > 0, name
        assert counts == {"read": counts["read"], "refused": 12 - counts["read"]}, name


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


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> str:
    """A LLaMA in several shards, as the full one is."""
    folder = tmp_path_factory.mktemp("llm")
    dataset = load_dataset(SampleConfig(max_seq_len=50, raw_dir=str(SAMPLE.parent)), folder / "data", full_size.LOGGER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full_size, "SHARD_BYTES", 200_000)
        full_size.build_llm(folder / "llm", full_size.SHAPES["tiny"], dataset, TeacherConfig(name="ilora_tiny"))
    assert len(list((folder / "llm").glob("*.safetensors"))) > 1
    return str(folder / "llm")


def test_a_benchmark_takes_an_llm(printed, llm, monkeypatch, ilora_folder) -> None:
    monkeypatch.setattr(teacher_step, "STEPS", 2)
    step = printed(teacher_step, "--llm", llm, "--batch_size", "1")
    assert step["loss_difference"] < 1e-4 and step["most_possible"] > 0
    result = printed(teacher_export, "--llm", llm, "--rows", "5", "--rounds", "1", "--train_rows", "8")
    assert result["cpu"]["equal_rows"] == 5 or result["dtype"] == "bfloat16"
    assert 0 < result["cpu"]["of_prompts"]["likelihood"] < result["cpu"]["of_tokens"]


def test_full_size(printed, tmp_path) -> None:
    sizes = ("--train_rows", "2", "--rows", "3", "--plain_rows", "2", "--max_history", "3", "--num_candidates", "5")
    where = ("--folder", str(tmp_path), "--device", "cpu", "--dtype", "float32", "--peak_tflops", "1e-3")
    result = printed(full_size, "--shape", "tiny", *sizes, *where)
    assert (result["plain_rows"], result["equal_rankings"], result["equal_first"]) == (2, 2, 2)
    assert result["largest_difference"] < 1e-4
    assert result["train_flops_share"] == pytest.approx(1e3 * result["train_tflops"], abs=0.6)
    assert list(tmp_path.iterdir()) == []


def test_a_benchmark_says_what_it_lacks(printed, tmp_path, monkeypatch) -> None:
    with pytest.raises(SystemExit, match=f"--llm {tmp_path}: teacher.llm_path={tmp_path}: "):
        teacher_step.load(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cuda: PyTorch sees no GPU here"):
        printed(full_size, "--device", "cuda")
    monkeypatch.setattr(full_size.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**30))
    with pytest.raises(SystemExit, match="the weights want 14 GiB; give --folder where there are, or --shape 1b"):
        printed(full_size, "--device", "cpu")


def test_full_size_counts_the_products() -> None:
    """Of a LLaMA 4 wide, one head: q, k, v, o of 4 x 4, three of 4 x 8; each token sees 3 of 6 on average."""
    shape = full_size.Shape(width=4, inner=8, layers=2, heads=1, kv_heads=1)
    assert full_size.flops_a_token(shape, 6) == 2 * 2 * (4 * 16 + 3 * 32) + 2 * (2 * 4 * 3 + 2 * 4 * 3)


def test_full_size_trains_students(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(full_size, "TEACHER_WIDTH", 16)
    found = full_size.student_epochs(tmp_path, torch.device("cpu"), 1200)
    assert found["student_train_rows"] > 1024 and min(found.values()) > 0


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
