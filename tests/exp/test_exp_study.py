"""Studies: variants x seeds beside a finished distillation, one table, and going on after an interruption."""

import re
import shutil

import pandas as pd
import pytest
import torch
from harness import TINY_STUDENT, places, read, refusal, run_here, snapshot
from matplotlib import image
from safetensors.torch import load_file

from src.exp import run_eval_all, run_study
from src.exp.study.config import StudyConfig
from src.exp.study.plan import _combined, variants

TEACHERS = ["recommender_teaches", "random_teaches", "tfidf_teaches", "shuffled_teaches"]
CONTROLS = ["distilled", *TEACHERS, "ranking_only", "embedding_only"]
REFERENCES = ["most popular", "Markov chain", "chain + TF-IDF"]


def call(pipeline, folder, *overrides: str, drawn: bool = False) -> int:
    where = places(pipeline.data_dir, pipeline.result_root, folder)
    return run_here(run_study.run, *where, f"study.run_dir={pipeline.folder}", *overrides, drawn=drawn)


def log(folder) -> str:
    return (folder / "logs" / "study.log").read_text()


@pytest.fixture(scope="module")
def controls(pipeline, tmp_path_factory):
    """The controls over two seeds, one of them the pipeline's own; the settings come from its folder."""
    folder = pipeline.result_root / "controls"
    before = snapshot(pipeline.folder)
    assert call(pipeline, folder, "study.seeds=[42,1]", drawn=True) == 0
    assert snapshot(pipeline.folder) == before
    yield folder
    shutil.rmtree(folder)


def table(folder, name: str = "controls") -> pd.DataFrame:
    return pd.read_csv(folder / "metrics" / f"{name}.csv", index_col="variant")


def test_the_table_has_the_baseline_every_variant_and_what_needs_no_student(controls) -> None:
    lines = table(controls)
    assert list(lines.index) == ["baseline", *CONTROLS, *REFERENCES, "teacher"]
    assert list(lines["seeds"]) == [2] * 8 + [1] * 4
    assert list(lines["users"]) == [300] * 11 + [20]  # the teacher was tested on a sample of the users
    assert lines.loc["baseline", ["difference", "low", "high", "verdict"]].isna().all()
    others = lines.drop("baseline")
    assert (others["low"] <= others["difference"]).all() and (others["difference"] <= others["high"]).all()
    assert set(others["verdict"]) <= {"better", "worse", "cannot tell"}
    assert lines.loc["baseline", "mean"] + lines.loc["distilled", "difference"] == pytest.approx(
        lines.loc["distilled", "mean"], abs=2e-6
    )
    assert lines["lead"].isna().to_dict() == {name: name == "distilled" for name in lines.index}
    assert lines.loc["baseline", "lead"] == pytest.approx(lines.loc["distilled", "difference"], abs=2e-6)
    for suffix in ("md", "html"):
        text = (controls / "metrics" / f"controls.{suffix}").read_text().replace("\\", "")
        assert all(name.replace("_", " ") in text for name in lines.index) and "42, 1" in text
    assert image.imread(controls / "metrics" / "controls.png")[..., :3].std() > 0.01


def test_the_pipelines_own_seed_gives_its_own_students(pipeline, controls) -> None:
    """The settings are those of the distillation although this call named none."""
    for variant, stage in (("baseline", "baseline"), ("distilled", "distill")):
        weights = load_file(controls / "runs" / variant / "seed_42" / "models" / stage / "model.safetensors")
        theirs = load_file(pipeline.folder / "models" / stage / "model.safetensors")
        assert all(torch.equal(weights[name], theirs[name]) for name in theirs)


def test_no_two_variants_are_the_same_student(controls) -> None:
    folders = [controls / "runs" / variant / "seed_1" for variant in CONTROLS]
    outputs = [load_file(f / "models" / "distill" / "model.safetensors")["output.weight"] for f in folders]
    assert not any(torch.equal(outputs[i], outputs[j]) for i in range(len(outputs)) for j in range(i))


def test_the_report_of_the_distillation_knows_its_controls(pipeline, controls, tmp_path) -> None:
    assert run_here(run_eval_all.run, *pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}") == 0
    log = (tmp_path / "run" / "logs" / "eval_all.log").read_text()
    assert f"taking distill of {pipeline.folder} (complete" in log  # not the study's newer variants
    assert re.search(
        r"chain \+ TF-IDF: similarity of weight [\d.]+, decay [\d.]+, the best of 21 on 300 validation rows", log
    )
    report = (tmp_path / "run" / "report.md").read_text()
    names = ["TF-IDF", "shuffled titles", "frozen recommender", "random"]
    assert all(f"{name} (" in report.splitlines()[2] for name in names)  # with its difference
    assert "Only what beats TF-IDF and shuffled titles is the LLM's." in report and "Not tried" not in report
    assert "## Studies" in report and re.search(r"\| random teaches +\|", report)
    assert (tmp_path / "run" / "plots" / "study_controls.png").is_file()
    table = [line.split("|")[1].strip() for line in report.splitlines() if line.startswith("| distilled - ")]
    assert table[-4:] == [f"distilled - {name}" for name in names]
    assert "own embeddings" not in report
    assert "Lead: the variant that the study names" in report and "lead over it" in report


def test_started_again_only_what_is_missing_is_trained(pipeline, controls, tmp_path) -> None:
    folder = shutil.copytree(controls, tmp_path / "run")
    shutil.rmtree(folder / "runs" / "ranking_only" / "seed_1")
    weights = {name: digest for name, digest in snapshot(folder).items() if name.endswith(".safetensors")}
    assert call(pipeline, folder, "study.seeds=[42,1]") == 0
    again = snapshot(folder)
    assert {name: again[name] for name in weights} == weights
    assert len([name for name in again if name.endswith(".safetensors")]) == len(weights) + 1 == 16
    assert (folder / "metrics" / "controls.csv").read_bytes() == (controls / "metrics" / "controls.csv").read_bytes()


def test_a_study_whose_table_was_changed_is_left_out_of_reports(pipeline, controls, tmp_path) -> None:
    copy = pipeline.result_root / "copied" / "controls"
    shutil.copytree(controls, copy, ignore=shutil.ignore_patterns("runs"))
    (copy / "metrics" / "controls.csv").write_text("variant,mean\nbaseline,1\n")
    assert run_here(run_eval_all.run, *pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}") == 0
    log = (tmp_path / "run" / "logs" / "eval_all.log").read_text()
    assert f"{copy}: the study's table is not what it wrote; the report leaves it out" in log
    assert len(re.findall(r"\| random teaches +\|", (tmp_path / "run" / "report.md").read_text())) == 1  # the other
    shutil.rmtree(copy.parent)


def test_variants_of_other_settings_are_not_mixed(pipeline, controls, capsys) -> None:
    before = snapshot(controls)
    assert call(pipeline, controls, "study.seeds=[42,1]", "student.lr=1") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{controls}: holds a study of other settings: student.lr changed from 0.001 to 1.0" in error
    assert snapshot(controls) == before


def test_the_ablations_train_and_a_variant_may_start_from_its_seeds_baseline(pipeline, tmp_path) -> None:
    one_step = ("distill.lr=1e-30", "distill.num_epochs=1", "student.num_epochs=1", "student.lr=1e-30")
    policy = ("active=random", "active.budget_ratio=0.5")  # without a ranking loss it has nothing to choose
    folder = tmp_path / "ablations"  # not under paths.result_root: its jobs find their baseline all the same
    assert call(pipeline, folder, "study=ablations", "study.seeds=[5]", *one_step, *policy) == 0
    assert len(table(folder, "ablations")) == 1 + 8 + 4
    start = load_file(folder / "runs" / "baseline" / "seed_5" / "models" / "baseline" / "model.safetensors")
    there = load_file(folder / "runs" / "starts_from_baseline" / "seed_5" / "models" / "distill" / "model.safetensors")
    assert torch.equal(start["output.weight"], there["output.weight"])


def test_a_variant_that_cannot_run_is_named_before_anything_is_trained(pipeline, tmp_path, capsys) -> None:
    """A distillation made step by step has no frozen recommender in its folder: today, not after hours."""

    def error(*overrides: str) -> str:
        assert call(pipeline, tmp_path / "run", "study.seeds=[1]", *overrides) == 1
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err.splitlines()[-1]

    missing = tmp_path / "none"
    assert (
        f"variant recommender_teaches: distill.teacher=recommender: no frozen recommender in {missing}; set "
        in error(f"teacher.rec_model_path={missing}")
    )
    unknown = error("+study.variants.x=['distill.alfa=1']")
    assert "variant x: distill.alfa: unknown key; did you mean distill.alpha?" in unknown
    flat = error("+study.variants.x=['distill.embedding_transform=whiten','distill.embedding_dims=99']")
    assert "variant x: distill.embedding_dims=99: the teacher's embeddings of 200 items vary in" in flat
    assert "variant x: changes the data set" in error("+study.variants.x=['dataset.max_seq_len=5']")
    outputs = shutil.copytree(pipeline.teacher_outputs, tmp_path / "outputs")
    (outputs / "manifest.json").write_text((outputs / "manifest.json").read_text() + "\n")
    changed = error(f"paths.teacher_outputs_dir={outputs}")
    assert f"{outputs}: no longer the teacher's files of {pipeline.folder}" in changed
    assert "leave the dataset's settings as they were there" in error("dataset.max_train_rows=500")


def test_a_wrong_run_folder(pipeline, tmp_path, capsys) -> None:
    assert call(pipeline, tmp_path / "run", f"study.run_dir={tmp_path}") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "study.run_dir=" in error and "must be the run folder of a finished distillation" in error
    assert not (tmp_path / "run").exists()


# --- the selection curve ------------------------------------------------------------------------------------


def curve(pipeline, folder, *overrides: str) -> int:
    where = places(pipeline.data_dir, pipeline.result_root, folder)
    left_out = (f"~study.grid.policy.{name}" for name in ("coverage", "student_entropy", "student_loss"))
    asked = ("study=curve", *left_out, "study.seeds=[42]")
    epochs = ("distill.num_epochs=1", "student.num_epochs=1")
    return run_here(run_study.run, *TINY_STUDENT, *where, *asked, *epochs, *overrides)


def test_a_curve_asks_for_shares_and_started_again_only_new_points_are_trained(pipeline, capsys) -> None:
    folder = pipeline.result_root / "curve"
    assert curve(pipeline, folder, "study.grid.share.values=[0.2]") == 0
    first = table(folder, "selection_curve")
    assert list(first.index) == ["baseline", "no_row", "all_rows", "random_0.2", *REFERENCES]
    job = folder / "runs" / "random_0.2" / "seed_42"
    assert "as if the teacher had been asked for 120 of 600 rows" in (job / "logs" / "train_distill.log").read_text()
    weights = snapshot(job / "models")
    assert curve(pipeline, folder, "study.grid.share.values=[0.2,0.5]") == 0
    again = table(folder, "selection_curve")
    assert list(again.index) == ["baseline", "no_row", "all_rows", "random_0.2", "random_0.5", *REFERENCES]
    assert again.loc[first.index, "mean"].tolist() == first["mean"].tolist()
    assert snapshot(job / "models") == weights
    assert read(folder / "records" / "study.json")["completed"] is not None
    shutil.rmtree(folder)


# --- plans --------------------------------------------------------------------------------------------------


def test_a_grid_combines_its_axes_behind_the_named_variants() -> None:
    config = StudyConfig(
        name="s",
        question="?",
        variants={"named": ["distill.alpha=1"]},
        grid={"policy": {"random": ["active=random"]}, "share": {"key": "active.budget_ratio", "values": [0.1, 0.5]}},
    )
    found = variants(config)
    assert [variant.name for variant in found] == ["baseline", "named", "random_0.1", "random_0.5"]
    assert found[2].overrides == ["active=random", "active.budget_ratio=0.1"]
    assert found[3].place == {"policy": "random", "share": "0.5"}


def test_a_group_that_a_variant_chooses_anew_takes_the_groups_overrides_with_it() -> None:
    base = ["dataset=sample", "active=random", "active.budget_ratio=0.5", "distill.alpha=1"]
    assert _combined(base, ["active=all", "distill.alpha=2"]) == ["dataset=sample", "distill.alpha=2", "active=all"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "study.seeds=[]: must be one or more different integers"),
        ({"seeds": [1, 1]}, "study.seeds=[1, 1]"),
        ({"plot": "pie"}, "study.plot='pie': must be one of points, curve"),
        ({"plot": "curve"}, "study.grid={}: must be one or more axes"),
        ({"ends": {"nobody": 0.0}}, "study.ends="),
        ({"variants": {"baseline": []}}, "study.variants="),
        ({"grid": {"share": {"values": [1]}}}, "study.grid.share="),
        ({"grid": {"share": {"key": "a.b", "values": [1, 1]}}}, "study.grid.share.values=[1, 1]"),
    ],
)
def test_a_wrong_study(changes, message) -> None:
    assert message in refusal(lambda: StudyConfig(**{"name": "s", "question": "?", **changes}))
