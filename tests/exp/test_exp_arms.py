"""Arms beside a finished distillation: what they are, one table, and going on after an interruption."""

import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from harness import places, run_here, snapshot
from safetensors.torch import load_file

from src.distill.data_bridge import TeacherOutputs
from src.exp import run_arms
from src.exp.arm_teachers import random_teacher, recommender_teacher
from src.student.checkpoint import CheckpointInfo, save_checkpoint
from src.student.evaluator import history_mask
from src.student.models import ModelConfig, build_model

CPU = torch.device("cpu")
CONTROLS = ["distilled", "recommender_teaches", "random_teaches", "ranking_only", "embedding_only"]


def call(pipeline, folder, *overrides: str) -> int:
    where = places(pipeline.data_dir, pipeline.result_root, folder)
    return run_here(run_arms.run, *where, f"arms.run_dir={pipeline.folder}", *overrides)


@pytest.fixture(scope="module")
def controls(pipeline, tmp_path_factory):
    """The controls over two seeds, one of them the pipeline's own; the settings come from its folder."""
    folder = tmp_path_factory.mktemp("arms") / "run"
    before = snapshot(pipeline.folder)
    assert call(pipeline, folder, "arms.seeds=[42,1]") == 0
    assert snapshot(pipeline.folder) == before
    return folder


def table(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics" / "arms.csv", index_col="arm")


def test_the_table_has_the_baseline_every_arm_and_what_needs_no_student(controls) -> None:
    lines = table(controls)
    assert list(lines.index) == ["baseline", *CONTROLS, "most_popular", "teacher"]
    assert list(lines["seeds"]) == [2] * 6 + [1, 1]
    assert list(lines["users"]) == [300] * 7 + [20]  # the teacher was tested on a sample of the users
    assert lines.loc["baseline", ["difference", "low", "high", "verdict"]].isna().all()
    others = lines.drop("baseline")
    assert (others["low"] <= others["difference"]).all() and (others["difference"] <= others["high"]).all()
    assert set(others["verdict"]) <= {"better", "worse", "cannot tell"}
    assert lines.loc["baseline", "mean"] + lines.loc["distilled", "difference"] == pytest.approx(
        lines.loc["distilled", "mean"], abs=2e-6
    )
    text = (controls / "metrics" / "arms.md").read_text()
    assert all(name in text for name in lines.index) and "seeds 42, 1" in text


def test_the_pipelines_own_seed_gives_its_own_students(pipeline, controls) -> None:
    """The settings are those of the distillation although this call named none."""
    for arm, stage in (("baseline", "baseline"), ("distilled", "distill")):
        weights = load_file(controls / "arms" / arm / "seed_42" / "models" / stage / "model.safetensors")
        theirs = load_file(pipeline.folder / "models" / stage / "model.safetensors")
        assert all(torch.equal(weights[name], theirs[name]) for name in theirs)


def test_no_two_arms_are_the_same_student(controls) -> None:
    folders = [controls / "arms" / arm / "seed_1" for arm in CONTROLS]
    outputs = [load_file(f / "models" / "distill" / "model.safetensors")["output.weight"] for f in folders]
    assert not any(torch.equal(outputs[i], outputs[j]) for i in range(5) for j in range(i))


def test_started_again_only_what_is_missing_is_trained(pipeline, controls, tmp_path) -> None:
    folder = shutil.copytree(controls, tmp_path / "run")
    shutil.rmtree(folder / "arms" / "ranking_only" / "seed_1")
    (folder / "logs" / "train_arms.log").unlink()
    assert call(pipeline, folder, "arms.seeds=[42,1]") == 0
    log = (folder / "logs" / "train_arms.log").read_text()
    assert log.count("skipped: complete and unchanged") == 11
    assert "arms/ranking_only/seed_1\n" in log
    assert (folder / "metrics" / "arms.csv").read_bytes() == (controls / "metrics" / "arms.csv").read_bytes()


def test_arms_of_other_settings_are_not_mixed(pipeline, controls, capsys) -> None:
    before = {name: hash_ for name, hash_ in snapshot(controls).items() if name.startswith(("arms/", "metrics/"))}
    assert call(pipeline, controls, "arms.seeds=[42,1]", "student.lr=1") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "arms/baseline/seed_42: stage baseline is finished there" in error
    assert "student.lr changed from 0.001 to 1" in error
    assert {n: h for n, h in snapshot(controls).items() if n in before} == before


def test_the_ablations_train_and_an_arm_may_start_from_its_seeds_baseline(pipeline, tmp_path) -> None:
    one_step = ("distill.lr=1e-30", "distill.num_epochs=1", "student.num_epochs=1")
    policy = ("active=random", "active.budget_ratio=0.5")  # without a ranking loss it has nothing to choose
    assert call(pipeline, tmp_path / "run", "arms=ablations", "arms.seeds=[5]", *one_step, *policy) == 0
    assert len(table(tmp_path / "run")) == 1 + 8 + 2
    arms = tmp_path / "run" / "arms"
    start = load_file(arms / "baseline" / "seed_5" / "models" / "baseline" / "model.safetensors")
    there = load_file(arms / "starts_from_baseline" / "seed_5" / "models" / "distill" / "model.safetensors")
    assert torch.equal(start["output.weight"], there["output.weight"])


def test_a_wrong_run_folder(pipeline, tmp_path, capsys) -> None:
    for given in ("null", str(tmp_path)):
        assert call(pipeline, tmp_path / "run", f"arms.run_dir={given}") == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "arms.run_dir=" in error and "must be the run folder of a finished distillation" in error
    assert not (tmp_path / "run" / "arms").exists()


def test_other_data_other_teacher_files_or_no_recommender_are_refused(pipeline, tmp_path, capsys) -> None:
    def error(*overrides: str) -> str:
        assert call(pipeline, tmp_path / "run", "arms.seeds=[1]", *overrides) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert "leave the dataset's settings as they were there" in error("dataset.max_train_rows=500")
    outputs = shutil.copytree(pipeline.teacher_outputs, tmp_path / "outputs")
    (outputs / "manifest.json").write_text((outputs / "manifest.json").read_text() + "\n")
    assert f"{outputs}: no longer the teacher's files of {pipeline.folder}" in error(
        f"paths.teacher_outputs_dir={outputs}"
    )
    assert "distill.alfa: unknown key" in error("+arms.trained.distilled.distill.alfa=1")
    missing = tmp_path / "none"
    assert f"{missing}: no frozen recommender" in error(f"teacher.rec_model_path={missing}", "~arms.trained.distilled")


# --- teachers that are no LLM -------------------------------------------------------------------------------


@pytest.fixture
def recommender(tiny_dataset, fill_with_ramp, tmp_path):
    model = fill_with_ramp(build_model(ModelConfig("sasrec", tiny_dataset.num_items, 8, 8, 5, 0.0)))
    info = CheckpointInfo("tiny", tiny_dataset.fingerprint, 1, "c", 1, "mrr", 0.0)
    save_checkpoint(tmp_path / "recommender", model, model.state_dict(), info)
    return SimpleNamespace(model=model.eval(), folder=tmp_path / "recommender")


def test_the_recommender_teaches_its_own_ranking_and_items(recommender, tiny_dataset) -> None:
    rows = tiny_dataset.train
    outputs = recommender_teacher(recommender.folder, tiny_dataset, 3, False, CPU)
    history, length, _ = rows.windows(5, tiny_dataset.pad_id)
    scores = recommender.model(torch.from_numpy(history), torch.from_numpy(length))
    scores[history_mask(rows, tiny_dataset.num_items)] = float("-inf")
    expected = scores.topk(3)
    assert torch.equal(outputs.ranking, expected.indices)
    gaps = expected.values[:, :1] - expected.values  # of scores: the normalisation of a row cancels
    assert torch.allclose(outputs.confidence, gaps / gaps[:, -1:], atol=1e-5)
    assert torch.equal(outputs.embeddings, recommender.model.item_embeddings.weight[:-1])

    per_row = recommender_teacher(recommender.folder, tiny_dataset, 3, True, CPU).confidence
    log_p = recommender.model(torch.from_numpy(history), torch.from_numpy(length)).log_softmax(1)
    assert torch.allclose(per_row, -log_p.gather(1, expected.indices[:, :1]), atol=1e-5)


def test_a_random_teacher_has_the_shapes_and_nothing_else() -> None:
    like = TeacherOutputs(3 * torch.eye(50, 40), torch.zeros(30, 4).long(), torch.rand(30, 4), "m" * 64)
    one, again, other = (random_teacher(like, 50, seed) for seed in (1, 1, 2))
    assert one.embeddings.shape == (50, 40) and one.embeddings.std() == pytest.approx(like.embeddings.std(), rel=0.1)
    assert one.ranking.shape == (30, 4) and all(len(set(row)) == 4 for row in one.ranking.tolist())
    assert torch.equal(one.confidence, like.confidence) and one.manifest_sha256 is None
    assert torch.equal(one.ranking, again.ranking) and torch.equal(one.embeddings, again.embeddings)
    assert not torch.equal(one.ranking, other.ranking)
    nothing = random_teacher(TeacherOutputs(None, None, None, None), 50, 1)
    assert nothing == TeacherOutputs(None, None, None, None)
