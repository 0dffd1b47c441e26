"""Arms beside a finished distillation: what they are, one table, and going on after an interruption."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from harness import places, run_here, snapshot
from safetensors.torch import load_file

from src.exp import run_arms
from src.exp.run_arms import arms_table

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


# --- the table's numbers ------------------------------------------------------------------------------------


def ranks(better: list[int]) -> dict[str, np.ndarray]:
    """One row for each user."""
    counts = {"better": better, "equal": [1] * len(better), "better_masked": [0] * len(better)}
    columns = {"user": range(len(better)), "target": [0] * len(better), **counts, "equal_masked": [1] * len(better)}
    return {name: np.array(values) for name, values in columns.items()}


def test_a_tables_numbers_by_hand() -> None:
    found = arms_table({"baseline": [ranks([0, 3]), ranks([3, 3])], "arm": [ranks([0, 0]), ranks([0, 3])]}, "recall@1")
    assert found.loc["baseline", "mean"] == (0.5 + 0.0) / 2
    assert found.loc["baseline", "std"] == pytest.approx(0.5 / 2**0.5)  # sqrt(2 * 0.25^2 / (2 - 1))
    assert found.loc["arm", "mean"] == (1.0 + 0.5) / 2
    assert found.loc["arm", "difference"] == 0.5  # users (1 + 1) / 2 - (1 + 0) / 2 and (1 + 0) / 2 - 0, averaged
    assert (found["masked"] == 1).all()
    assert list(found["users"]) == [2, 2] and list(found["seeds"]) == [2, 2]
