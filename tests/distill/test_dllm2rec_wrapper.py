"""The original program as a process: its files, its settings, its output; and a real run where it is checked out."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from src.core.errors import UserError
from src.core.metrics import MetricsConfig
from src.distill.config import DistillConfig
from src.distill.data_bridge import TeacherOutputs
from src.distill.dllm2rec_wrapper import (
    KS,
    UpstreamResult,
    arguments,
    check_settings,
    find_program,
    read_line,
    read_teacher,
    read_windows,
    run_program,
    write_files,
)
from src.student.config import SCHEMAS, StudentConfig

OFFICIAL = DistillConfig(
    name="dllm2rec_official", engine="submodule", loss="bce_dros", candidate_loss="official", top_k=4
)
CPU = torch.device("cpu")


def student_of(name: str = "sasrec", **values) -> StudentConfig:
    return SCHEMAS[name](name=name, **values)


@pytest.fixture
def outputs() -> TeacherOutputs:
    random = torch.Generator().manual_seed(0)
    ranking = torch.stack([torch.randperm(12, generator=random)[:4] for _ in range(32)])
    confidence = torch.rand(32, 4, generator=random).sort(1).values
    embeddings = torch.randn(12, 5, generator=random)
    return TeacherOutputs(embeddings=embeddings, ranking=ranking, confidence=confidence)


# --- files --------------------------------------------------------------------------------------------------


def test_written_windows_are_read_back(tiny_dataset, outputs, tmp_path):
    write_files(tmp_path, tiny_dataset, outputs)

    folder = tmp_path / "data" / "ours"
    for name, rows in (
        ("train_data.df", tiny_dataset.train),
        ("val_data.csv", tiny_dataset.valid),
        ("test_data.csv", tiny_dataset.test),
    ):
        read = read_windows(folder / name)
        for ours, theirs in zip(rows.windows(10, 12), read, strict=True):
            np.testing.assert_array_equal(theirs, ours)
            assert theirs.dtype == np.int64
    assert read_windows(folder / "train_data.df")[0].shape == (32, 10)  # windows of 10, whatever the dataset's


def test_long_histories_are_cut_to_their_last_ten(make_dataset, outputs, tmp_path):
    dataset = make_dataset([list(range(15))], num_items=15)
    write_files(tmp_path, dataset, replace(outputs, embeddings=None, ranking=None, confidence=None))

    history, length, target = read_windows(tmp_path / "data" / "ours" / "test_data.csv")
    assert (history.tolist(), length.tolist(), target.tolist()) == ([list(range(4, 14))], [10], [14])
    assert read_teacher(tmp_path).ranking is None and read_teacher(tmp_path).embeddings is None


def test_written_teacher_is_read_back(tiny_dataset, outputs, tmp_path):
    write_files(tmp_path, tiny_dataset, outputs)

    read = read_teacher(tmp_path)
    assert torch.equal(read.ranking, outputs.ranking)
    torch.testing.assert_close(read.confidence, outputs.confidence, rtol=1e-7, atol=0)
    assert read.embeddings.shape == (12, 4096)
    assert torch.equal(read.embeddings[:, :5], outputs.embeddings) and not read.embeddings[:, 5:].any()


def test_a_teacher_of_some_rows_is_refused(tiny_dataset, outputs, tmp_path):
    partial = outputs.restricted_to(np.array([3, 5]), 32)
    message = "distill.engine=submodule: the teacher was asked for 2 of 32 training rows.*teacher.export.rows=all"
    with pytest.raises(UserError, match=message):
        write_files(tmp_path, tiny_dataset, partial)


def test_embeddings_that_are_too_wide(tiny_dataset, outputs, tmp_path):
    with pytest.raises(
        UserError, match="the teacher's embeddings are 4097 wide, the original program takes at most 4096"
    ):
        write_files(tmp_path, tiny_dataset, replace(outputs, embeddings=torch.zeros(12, 4097)))


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "student, distill, others, message",
    [
        ({"emb_size": 32}, {}, {}, "student.emb_size=32: must be 64 with distill.engine=submodule"),
        ({"hidden_size": 32}, {}, {}, "student.hidden_size=32: must be 64"),
        ({"patience": 5}, {}, {}, "student.patience=5: must be 10"),
        ({"grad_clip": 1.0}, {}, {}, "student.grad_clip=1.0: must be 0"),
        ({"num_blocks": 2}, {}, {}, "student.num_blocks=2: must be 1"),
        ({"num_heads": 2}, {}, {}, "student.num_heads=2: must be 1"),
        ({"norm": "pre"}, {}, {}, "student.norm='pre': must be dllm2rec"),
        ({"tied_output": True}, {}, {}, "student.tied_output=True: must be False"),
        ({"batching": "packed"}, {}, {}, "student.batching='packed': must be rows"),
        ({"mixed_precision": True}, {}, {}, "student.mixed_precision=True: must be False"),
        ({"name": "sasrec_plus"}, {}, {}, "student.name='sasrec_plus': must be one of sasrec, gru4rec, caser"),
        ({"name": "gru4rec"}, {}, {}, "student.dropout=0.1: must be 0"),
        ({}, {"candidate_loss": "paper"}, {}, "distill.candidate_loss='paper': must be official"),
        ({}, {"dros_average": "row"}, {}, "distill.dros_average='row': must be batch"),
        ({}, {"loss": "bce"}, {}, "distill.loss='bce': must be bce_dros"),
        ({}, {"confidence": "per_sequence"}, {}, "distill.confidence='per_sequence': must be per_candidate"),
        ({}, {"embedding": "align"}, {}, "distill.embedding='align': must be fuse"),
        ({}, {"init": "baseline"}, {}, "distill.init='baseline': must be scratch"),
        ({}, {}, {"seed": 1}, "general.seed=1: must be 2024"),
        ({}, {}, {"policy": "random"}, "active.strategy='random': must be all"),
        ({}, {}, {"metrics": MetricsConfig(history="removed")}, "metrics.history='removed': must be shown"),
        ({}, {}, {"metrics": MetricsConfig(monitor="mrr")}, "metrics.monitor='mrr': must be one of ndcg@1"),
    ],
)
def test_what_the_program_fixes_is_refused_by_name(student, distill, others, message):
    config = student_of(**student)
    values = {"seed": 2024, "policy": "all", "metrics": MetricsConfig(), **others}
    with pytest.raises(UserError) as error:
        check_settings(replace(OFFICIAL, **distill), config, **values)
    assert str(error.value).startswith(message)


def test_the_official_preset_is_accepted():
    for student in (student_of("sasrec"), student_of("gru4rec", dropout=0.0), student_of("caser")):
        check_settings(OFFICIAL, student, 2024, "all", MetricsConfig(monitor="recall@20"))


def test_every_setting_reaches_the_command_line():
    settings = replace(
        OFFICIAL,
        alpha=0.1,
        ed_weight=0.2,
        kd_weight=0.3,
        batch_size=32,
        lr=0.004,
        num_epochs=5,
        top_k=6,
        gamma_position=0.7,
        gamma_confidence=0.8,
        gamma_consistency=0.9,
    )
    student = student_of("caser", dropout=0.25, weight_decay=0.5, dros_beta=2.0, num_filters=8, filter_sizes=[2, 3])

    words = arguments(settings, student, torch.device("cuda:1"))

    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--model_name": "Caser", "--data": "ours", "--cuda": "1", "--dropout_rate": "0.25", "--batch_size": "32",
        "--epoch": "5", "--hidden_factor": "64", "--lr": "0.004", "--l2_decay": "0.5", "--num_filters": "8",
        "--filter_sizes": "[2, 3]", "--alpha": "0.1", "--beta": "2.0", "--ed_weight": "0.2", "--lam": "0.3",
        "--candidate_topk": "6", "--gamma_position": "0.7", "--gamma_confidence": "0.8", "--gamma_consistency": "0.9",
    }  # fmt: skip
    assert arguments(settings, student, CPU)[5] == "-1"


# --- the process --------------------------------------------------------------------------------------------

EPOCH = """the loss in {epoch}th step is: 1.5, train this epoch cost 0.1 s
VAL PHRASE:
hr@1\tndcg@1
0.100000\t0.100000\t0.200000\t0.150000\t0.300000\t0.180000\t0.400000\t0.200000
TEST PHRASE:
{hit}\t0.100000\t0.200000\t0.150000\t0.300000\t0.170000\t0.400000\t0.200000
patience=0, BEST STEP:{best}, BEST NDCG@20:0.2, BEST HR@20:0.4, test cost:0.1s
"""


def test_output_is_understood():
    result = UpstreamResult()
    text = EPOCH.format(epoch=1, hit="0.050000", best=1) + EPOCH.format(epoch=2, hit="0.060000", best=1)

    ends = [read_line(line, result) for line in text.splitlines()]

    assert ends.count(True) == 2 and [e["loss"] for e in result.epochs] == [1.5, 1.5]
    assert result.metrics("test")["hit_ratio@1"] == result.metrics("test")["recall@1"] == 0.05
    assert result.metrics("valid")["ndcg@10"] == 0.18 and result.metrics("test")["ndcg@10"] == 0.17
    assert set(result.metrics("test")) == {f"{name}@{k}" for name in ("hit_ratio", "recall", "ndcg") for k in KS}


def _program(folder, text: str):
    (folder / "main.py").write_text(text)
    return folder


def test_its_epochs_are_returned_and_its_output_kept(tmp_path):
    text = EPOCH.format(epoch=1, hit="0.050000", best=1)
    program = _program(tmp_path, f"import sys\nprint(sys.argv[1:])\nprint({text!r})\n")

    result = run_program(program, tmp_path, ["--epoch", "1"], 1, tmp_path / "output.log")

    assert result.best_epoch == 1 and len(result.epochs) == 1
    assert "['--epoch', '1']" in (tmp_path / "output.log").read_text()


@pytest.mark.parametrize(
    "text, message",
    [
        ("raise ValueError('no such thing')", "ended with code 1: ValueError: no such thing; see"),
        ("print('nothing')", "ended with code 0: it found no target among its top 20 in any epoch"),
    ],
)
def test_its_failure_is_an_error_with_its_last_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        run_program(_program(tmp_path, text), tmp_path, [], 1, tmp_path / "output.log")


def test_a_missing_or_changed_program(tmp_path, monkeypatch):
    monkeypatch.setenv("DLLM2REC_DIR", str(tmp_path))
    with pytest.raises(UserError, match="no main.py in .*git submodule update --init src/third_party/dllm2rec"):
        find_program()
    _program(tmp_path, "print()")
    with pytest.raises(UserError, match="main.py is not that of istarryn/DLLM2Rec@b78cc65"):
        find_program()


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "caser"])
def test_the_original_program_runs(dllm2rec_folder, monkeypatch, tiny_dataset, outputs, tmp_path, name):
    monkeypatch.setenv("DLLM2REC_DIR", str(dllm2rec_folder))
    program = tmp_path / "program"
    shutil.copytree(find_program(), program)
    write_files(tmp_path, tiny_dataset, outputs)
    settings = replace(OFFICIAL, batch_size=16, num_epochs=2, top_k=4)
    words = arguments(settings, student_of(name), CPU)

    result = run_program(program, tmp_path, words, 2, tmp_path / "output.log")

    assert [e["epoch"] for e in result.epochs] == [1, 2] and result.best_epoch in (1, 2)
    assert all(np.isfinite(e["loss"]) for e in result.epochs)
    test = result.metrics("test")
    assert test["hit_ratio@20"] == 1.0  # of 12 items
    assert test["ndcg@20"] == max(e["test/ndcg@20"] for e in result.epochs)
