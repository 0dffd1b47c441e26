"""The run folder that the four entry points make."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from harness import TINY_STUDENT, TINY_TEACHER, places, read, refusal, run_here, snapshot
from matplotlib import image
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.core.files import LOCK_FILE, sha256_file
from src.core.git_info import git_commit
from src.core.paths import RunFolder
from src.core.teacher_files import read_manifest
from src.exp import run_distill, run_eval_all, run_student_baseline, run_teacher
from src.student.checkpoint import load_checkpoint

STUDENTS = ("baseline", "distill")
STAGES = ("teacher", *STUDENTS)
PLOTS = ("breakdown", "comparison", "intervals", "learning_curves")
METRICS = {f"{name}@{k}" for name in ("recall", "ndcg", "hit_ratio") for k in (1, 5, 10, 20)} | {"mrr"}
HEAD = {
    "model",
    "dataset",
    "dataset_fingerprint",
    "split",
    "num_users",
    "num_items",
    "seed",
    "git_commit",
    "checkpoint",
    "metrics",
    "metrics_masked",
    "beyond_accuracy",
}
LISTS = {f"{name}@10" for name in ("item_coverage", "gini_index", "average_popularity", "novelty")} | {
    "intra_list_diversity@10"
}


def log_text(pipeline, name: str) -> str:
    return (pipeline.folder / "logs" / f"{name}.log").read_text(encoding="utf-8")


def test_the_run_folder_holds_what_the_specification_lists_and_nothing_else(pipeline) -> None:
    top = {path.name for path in pipeline.folder.iterdir()}
    reports = {"report.md", "report.html"}
    folders = {".hydra", "logs", "tb", "models", "metrics", "plots", "records"}
    assert top == {*folders, "git_info.txt", LOCK_FILE, *reports}
    made = {"recommender", "tiny_llm", "teacher_export", "teacher_evaluation", "eval", *STAGES}
    assert {path.stem for path in (pipeline.folder / "records").iterdir()} == made
    assert {path.name for path in (pipeline.folder / "models").iterdir()} == set(STAGES)
    assert {path.name for path in (pipeline.folder / "tb").iterdir()} == {*STAGES, "eval"}
    assert {path.name for path in (pipeline.folder / "metrics").iterdir()} == {
        *(f"eval_{stage}.json" for stage in STAGES),
        *(f"ranks_{stage}.npz" for stage in STAGES),
        *(f"history_{stage}.csv" for stage in STUDENTS),
        "time.json",
        "cost.json",
        "summary.csv",
        "summary.md",
        "teacher_examples.md",
    }
    assert not [path for name in ("*.part", "last_state.pt") for path in pipeline.folder.rglob(name)]


def test_time_json_has_the_four_names_in_seconds(pipeline) -> None:
    times = read(pipeline.folder / "metrics" / "time.json")
    assert set(times) == {
        "teacher_train_time_total",
        "distill_teacher_export_time",
        "student_baseline_train_time",
        "distill_student_train_time",
    }
    assert all(isinstance(seconds, float) and seconds > 0 for seconds in times.values())


@pytest.mark.parametrize("stage", STAGES)
def test_an_evaluation_has_every_field_and_every_metric(pipeline, stage) -> None:
    evaluation = read(pipeline.folder / "metrics" / f"eval_{stage}.json")
    assert set(evaluation) == HEAD | ({"answers"} if stage == "teacher" else set())
    assert evaluation["model"] == ("ilora_tiny" if stage == "teacher" else "sasrec")
    assert (evaluation["dataset"], evaluation["split"], evaluation["seed"]) == ("sample", "test", 42)
    assert evaluation["num_users"] == (20 if stage == "teacher" else 300)
    assert evaluation["num_items"] == 200
    assert evaluation["git_commit"] == git_commit()
    assert (pipeline.folder / evaluation["checkpoint"]).is_dir()
    for part in ("metrics", "metrics_masked"):
        assert set(evaluation[part]) == METRICS
        assert all(0 <= value <= 1 for value in evaluation[part].values())
        assert set(evaluation["beyond_accuracy"][part]) == LISTS
        assert all(evaluation[part][f"recall@{k}"] == evaluation[part][f"hit_ratio@{k}"] for k in (1, 5, 10, 20))


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_give_the_metrics_again(pipeline, stage) -> None:
    evaluation = read(pipeline.folder / "metrics" / f"eval_{stage}.json")
    with np.load(pipeline.folder / "metrics" / f"ranks_{stage}.npz") as ranks:
        both = {f"{name}{end}" for name in ("better", "equal", "popularity") for end in ("", "_masked")}
        assert set(ranks) == {"user", "target"} | both
        assert all(len(ranks[name]) == evaluation["num_users"] for name in ranks)
        better, equal = ranks["better"], ranks["equal"]
    chance = np.clip(10 - better, 0, equal) / equal  # share of the places 0..9 among those the target may take
    assert evaluation["metrics"]["recall@10"] == pytest.approx(chance.mean())


def test_git_info_names_our_commit_and_the_two_submodules(pipeline) -> None:
    lines = (pipeline.folder / "git_info.txt").read_text().splitlines()
    assert lines[0] == git_commit()
    assert [line.split()[0] for line in lines[1:]] == ["src/third_party/ilora", "src/third_party/dllm2rec"]
    assert [line.split()[1] for line in lines[1:]] == [
        "28e47371192121b6ced44401d9e149fedfae13de",
        "b78cc658892e31b7c2bff9641dc090f2255994c3",
    ]


@pytest.mark.parametrize("stage", [*STAGES, "eval"])
def test_every_stage_keeps_its_configuration(pipeline, stage) -> None:
    folder = pipeline.folder / ".hydra"
    assert {path.name for path in (folder / stage).iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    config = OmegaConf.load(folder / stage / "config.yaml")
    assert (config.student.emb_size, config.dataset.name, config.distill["lambda"]) == (8, "sample", 0.7)
    assert "student.emb_size=8" in OmegaConf.load(folder / stage / "overrides.yaml")
    job = OmegaConf.load(folder / stage / "hydra.yaml").hydra.job.name
    assert job == {"baseline": "run_student_baseline", "eval": "run_eval_all"}.get(stage, f"run_{stage}")
    assert (folder / "config.yaml").read_bytes() == (folder / "eval" / "config.yaml").read_bytes()


def test_logs_have_their_names_and_tell_what_was_done(pipeline) -> None:
    expected = {
        "train_teacher": "teacher test: HR@1",
        "train_student_baseline": "best epoch",
        "train_distill": "best epoch",
        "eval_all": "baseline: same test metrics as after its training",
    }
    assert {path.stem for path in (pipeline.folder / "logs").iterdir()} == set(expected)
    for name, text in expected.items():
        assert text in log_text(pipeline, name)
    assert "dataset sample: 300 users, 200 items" in log_text(pipeline, "train_distill")


def test_tensorboard_has_the_curves_of_every_stage(pipeline) -> None:
    expected = {
        "teacher": {"train/loss", "valid/hr@1_all"},
        "teacher/recommender": {"loss", "valid/ndcg@10"},
        "baseline": {"loss", "loss_ce", "valid/ndcg@10", "test/ndcg@10"},
        "distill": {"loss", "loss_ce", "loss_ranking", "selected", "valid/ndcg@10", "test/ndcg@10", "best/ndcg@10"},
        "eval": {"test/baseline/ndcg@10", "test/distill/ndcg@10", "test/popular/recall@10"},
    }
    for stage, tags in expected.items():
        events = EventAccumulator(str(pipeline.folder / "tb" / stage))
        events.Reload()
        assert tags <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("stage", STUDENTS)
def test_the_history_has_a_line_per_epoch_and_the_best_is_the_checkpoint(pipeline, stage) -> None:
    history = pd.read_csv(pipeline.folder / "metrics" / f"history_{stage}.csv")
    _, info = load_checkpoint(pipeline.folder / "models" / stage)
    assert list(history["epoch"]) == [1, 2]
    assert history["valid/ndcg@10"].idxmax() + 1 == info.epoch
    assert info.valid_value == pytest.approx(history["valid/ndcg@10"].max())


def test_a_distilled_checkpoint_has_the_baselines_names_and_shapes(pipeline) -> None:
    baseline, distilled = (load_file(pipeline.folder / "models" / s / "model.safetensors") for s in STUDENTS)
    assert {k: v.shape for k, v in baseline.items()} == {k: v.shape for k, v in distilled.items()}
    assert any(not torch.equal(baseline[name], distilled[name]) for name in baseline)
    manifest = sha256_file(pipeline.teacher_outputs / "manifest.json")
    assert read(pipeline.folder / "models" / "distill" / "config.json")["info"]["teacher_manifest_sha256"] == manifest


def test_the_teacher_is_kept_in_the_layouts_of_peft_and_transformers(pipeline) -> None:
    folder = pipeline.folder / "models" / "teacher"
    adapter = read(folder / "adapter" / "adapter_config.json")
    assert (adapter["peft_type"], adapter["r"], adapter["lora_alpha"]) == ("LORA", 4, 2 * 32)
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any("lora_A" in name for name in weights) and any("router" in name for name in weights)
    assert not any("embed_tokens" in name or "lm_head" in name for name in weights)
    config = read(folder / "llm" / "config.json")
    assert (config["model_type"], config["hidden_size"], config["num_hidden_layers"]) == ("llama", 16, 3)
    for name in ("tokenizer.model", "tokenizer_config.json", "model.safetensors"):
        assert (folder / "llm" / name).stat().st_size > 0
    assert load_checkpoint(folder / "recommender")[1].dataset == "sample"


def test_the_teachers_files_agree_with_their_manifest(pipeline) -> None:
    folder = pipeline.teacher_outputs
    manifest = read_manifest(folder)
    adapter = pipeline.folder / "models" / "teacher" / "adapter" / "adapter_model.safetensors"
    files = {path.name for path in folder.iterdir()} - {LOCK_FILE}
    assert files == {*manifest.sha256, "row_stats.npz", "manifest.json", "README.md"}
    assert all(sha256_file(folder / name) == digest for name, digest in manifest.sha256.items())
    assert (manifest.num_rows, manifest.num_items, manifest.top_n, manifest.llm_dim) == (600, 200, 4, 16)
    assert (manifest.in_sample_rows, manifest.seed) == (64, 42)
    assert manifest.adapter_sha256 == sha256_file(adapter)
    assert (
        manifest.dataset_fingerprint == load_checkpoint(pipeline.folder / "models" / "baseline")[1].dataset_fingerprint
    )
    embeddings = torch.load(folder / "all_embeddings.pt", weights_only=True)
    ranking, confidence = (np.loadtxt(folder / n) for n in ("myrank_train.txt", "confidence_train.txt"))
    assert (embeddings.shape, embeddings.dtype) == ((200, 16), torch.float32)
    assert ranking.shape == confidence.shape == (600, 4)
    assert ranking.min() >= 0 and ranking.max() < 200 and all(len(set(row)) == 4 for row in ranking)
    assert (np.diff(confidence, axis=1) >= 0).all() and (confidence[:, 0] == 0).all() and confidence.max() <= 1
    with np.load(folder / "row_stats.npz") as stats:
        assert all(len(stats[name]) == 600 for name in stats)


def test_the_report_links_exist_and_its_numbers_are_the_evaluations(pipeline) -> None:
    report = (pipeline.folder / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", report)
    assert sorted(links) == [f"plots/{name}.png" for name in PLOTS]
    assert all((pipeline.folder / link).is_file() for link in links)
    for stage in STUDENTS:
        value = read(pipeline.folder / "metrics" / f"eval_{stage}.json")["metrics"]["ndcg@10"]
        assert f"{value:.4f}" in report.splitlines()[2]
    assert "bash cmd/run_all_pipeline.sh" in report and "student.emb_size=8" in report
    assert report.splitlines()[0] == r"# anyo\_ilora\_dllm2rec: sample"


def test_plots_are_images_with_something_in_them(pipeline) -> None:
    paths = sorted((pipeline.folder / "plots").iterdir())
    assert [path.stem for path in paths] == list(PLOTS)
    for path in paths:
        pixels = image.imread(path)  # [height, width, RGBA]
        assert min(pixels.shape[:2]) > 200 and pixels[..., :3].std() > 0.01


def test_the_summary_holds_every_model_and_metric(pipeline) -> None:
    summary = pd.read_csv(pipeline.folder / "metrics" / "summary.csv", index_col="model")
    references = ["most popular", "Markov chain", "chain + TF-IDF"]
    assert list(summary.index) == [*references, "teacher", "student, baseline", "student, distilled"]
    assert set(summary.columns) == METRICS | {f"{name} masked" for name in METRICS}
    evaluation = read(pipeline.folder / "metrics" / "eval_distill.json")
    assert summary.loc["student, distilled", "mrr"] == pytest.approx(evaluation["metrics"]["mrr"], abs=1e-6)
    markdown = (pipeline.folder / "metrics" / "summary.md").read_text()
    assert all(label in markdown for label in summary.index) and "ndcg@10 masked" in markdown


@pytest.mark.parametrize("stage", STAGES)
def test_evaluating_again_gives_what_training_gave(pipeline, stage) -> None:
    name = f"eval_{stage}.json"
    assert json.loads(pipeline.after_training[name]) == read(pipeline.folder / "metrics" / name)


def test_eval_prints_the_table_and_where_the_report_is(pipeline) -> None:
    out = pipeline.printed["eval"]
    assert all(
        word in out for word in ("popular", "Markov", "TF-IDF", "teacher", "baseline", "distilled", "ndcg@10 masked")
    )
    value = read(pipeline.folder / "metrics" / "eval_distill.json")["metrics_masked"]["ndcg@20"]
    row = next(line for line in out.splitlines() if "ndcg@20 masked" in line)
    assert f"{value:.4f}" in row
    assert f"report: {pipeline.folder / 'report.md'}" in out
    assert f"plot: {pipeline.folder / 'plots' / 'comparison.png'}" in out


def test_another_folder_can_evaluate_a_run_and_gets_the_same_numbers(pipeline, tmp_path) -> None:
    before = snapshot(pipeline.folder)
    folder = tmp_path / "elsewhere"
    overrides = [*pipeline.overrides, f"hydra.run.dir={folder}", f"eval.run_dir={pipeline.folder}"]
    assert run_here(run_eval_all.run, *overrides) == 0
    for stage in STAGES:
        here, there = (read(f / "metrics" / f"eval_{stage}.json") for f in (folder, pipeline.folder))
        assert here["metrics"] == there["metrics"] and here["metrics_masked"] == there["metrics_masked"]
    for name in ("summary.csv", "summary.md"):
        assert (folder / "metrics" / name).read_text() == (pipeline.folder / "metrics" / name).read_text()
    assert (folder / "report.md").is_file() and (folder / "plots" / "comparison.png").is_file()
    assert snapshot(pipeline.folder) == before


def test_without_a_key_the_newest_finished_run_is_evaluated_and_named(pipeline, tmp_path) -> None:
    folder = tmp_path / "elsewhere"
    (pipeline.result_root / "result_20990101_000000").mkdir(exist_ok=True)  # newer, but nothing is finished in it
    assert run_here(run_eval_all.run, *pipeline.overrides, f"hydra.run.dir={folder}") == 0
    log = (folder / "logs" / "eval_all.log").read_text()
    for stage in STUDENTS:
        assert f"eval.run_dir not given: taking {stage} of {pipeline.folder} (complete 20" in log
        assert read(folder / "metrics" / f"eval_{stage}.json")["seed"] == 42
    assert (folder / "metrics" / "eval_teacher.json").is_file()


def test_other_cut_offs_than_the_teachers_can_be_evaluated(pipeline, tmp_path) -> None:
    overrides = [*pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}", f"eval.run_dir={pipeline.folder}"]
    assert run_here(run_eval_all.run, *overrides, "metrics.ks=[2,10]") == 0
    summary = pd.read_csv(tmp_path / "run" / "metrics" / "summary.csv", index_col="model")
    assert summary.loc["student, baseline", "recall@2"] >= 0
    assert np.isnan(summary.loc["teacher", "recall@2"])


FINISHED = {"teacher": run_teacher.run, "baseline": run_student_baseline.run, "distill": run_distill.run}


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_stage_is_not_overwritten(pipeline, capsys, stage) -> None:
    before, outputs = snapshot(pipeline.folder), snapshot(pipeline.teacher_outputs)
    code = run_here(FINISHED[stage], *pipeline.overrides, f"hydra.run.dir={pipeline.folder}", "general.seed=7")
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(error) == 1
    assert f"{stage} is complete there, and general.seed changed from 42 to 7" in error[0]
    assert "general.overwrite=true" in error[0]
    assert snapshot(pipeline.folder) == before
    assert snapshot(pipeline.teacher_outputs) == outputs


def test_overwrite_runs_a_finished_stage_again(pipeline, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(pipeline.folder, folder)
    overrides = [*pipeline.overrides, f"hydra.run.dir={folder}", "general.seed=7", "general.overwrite=true"]
    assert run_here(run_student_baseline.run, *overrides) == 0
    changed = {k for k, v in snapshot(folder).items() if snapshot(pipeline.folder).get(k) != v}
    assert {"models/baseline/model.safetensors", "metrics/eval_baseline.json", "metrics/time.json"} <= changed
    assert read(folder / "metrics" / "eval_baseline.json")["seed"] == 7
    assert not any(name.startswith(("models/teacher", "models/distill", "metrics/eval_distill")) for name in changed)
    old, new = (read(f / "metrics" / "time.json") for f in (pipeline.folder, folder))
    assert new["teacher_train_time_total"] == old["teacher_train_time_total"]


def test_another_teachers_export_is_not_overwritten(pipeline, tmp_path, capsys) -> None:
    before = snapshot(pipeline.teacher_outputs)
    assert run_here(run_teacher.run, *pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "holds the export of another teacher (ilora_tiny, seed 42, 600 rows)" in error
    assert "general.overwrite=true" in error and "paths.teacher_outputs_dir" in error
    assert snapshot(pipeline.teacher_outputs) == before
    assert not (tmp_path / "run" / "models").exists()  # refused before the training, which costs hours


NO_TEACHER = ("distill.lambda=0", "distill.ed_weight=0")
FROM_BASELINE = (*NO_TEACHER, "distill.init=baseline", "distill.num_epochs=1", "distill.lr=1e-30")


def start_values(folder) -> torch.Tensor:
    return load_file(folder / "models" / "distill" / "model.safetensors")["output.weight"]


def another_baseline(pipeline, folder) -> torch.Tensor:
    """A copy of the pipeline's baseline as if it had been trained to other weights there; returns its output layer."""
    for part in ("models/baseline", "metrics", "records"):
        shutil.copytree(pipeline.folder / part, folder / part)
    for file in (folder / "records").iterdir():
        if file.stem != "baseline":
            file.unlink()
    weights = load_file(folder / "models" / "baseline" / "model.safetensors")
    weights["output.weight"] += 1
    save_file(weights, folder / "models" / "baseline" / "model.safetensors")
    return weights["output.weight"]


def test_a_distillation_starts_from_the_baseline_of_its_folder(pipeline, tmp_path) -> None:
    edited = another_baseline(pipeline, tmp_path / "run")
    assert run_here(run_distill.run, *pipeline.overrides, *FROM_BASELINE, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert torch.allclose(start_values(tmp_path / "run"), edited)
    assert "taking baseline of" not in (tmp_path / "run" / "logs" / "train_distill.log").read_text()


def test_the_newest_is_found_by_its_record_whatever_its_folder_is_called(pipeline, tmp_path) -> None:
    """Not by the folder's name: `result_9999` is older than `my_baseline`."""
    results = tmp_path / "result"
    for name, completed in (("result_9999", "2026-01-01"), ("deep/my_baseline", "2026-01-02"), ("old", "2025-12-31")):
        weights = another_baseline(pipeline, results / name)
        file = results / name / "records" / "baseline.json"
        file.write_text(json.dumps({**read(file), "completed": f"{completed}T00:00:00+00:00"}))
        if name == "deep/my_baseline":
            weights += 1
            tensors = load_file(results / name / "models" / "baseline" / "model.safetensors")
            save_file({**tensors, "output.weight": weights}, results / name / "models/baseline/model.safetensors")
            newest = weights
    where = places(pipeline.data_dir, results, results / "run")
    assert run_here(run_distill.run, *TINY_STUDENT, *where, *FROM_BASELINE) == 0
    assert torch.allclose(start_values(results / "run"), newest)
    log = (results / "run" / "logs" / "train_distill.log").read_text()
    assert f"distill.init_checkpoint not given: taking baseline of {results / 'deep' / 'my_baseline'} (complete" in log


def test_a_partner_has_to_fit_and_the_nearest_that_does_not_is_named(pipeline, tmp_path, capsys) -> None:
    other = [*pipeline.overrides, *FROM_BASELINE, f"hydra.run.dir={tmp_path / 'run'}", "student.dropout=0.2"]
    assert run_here(run_distill.run, *other) == 1
    printed = capsys.readouterr().err
    assert f"no baseline fits; the nearest, of {pipeline.folder}, does not: student.dropout 0.1 / 0.2" in printed
    assert "with these student settings and this seed" in printed.splitlines()[-1]


def test_a_distillation_without_any_baseline_says_what_to_run(pipeline, tmp_path, capsys) -> None:
    overrides = [*TINY_STUDENT, *places(pipeline.data_dir, tmp_path, tmp_path / "run"), *FROM_BASELINE]
    assert run_here(run_distill.run, *overrides) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "distill.init_checkpoint=null: no finished baseline of dataset sample" in error
    assert "src.exp.run_student_baseline" in error


def test_without_any_weight_the_distilled_student_is_the_baseline(pipeline, tmp_path) -> None:
    """Lambda = ed_weight = 0: the same steps, so the same weights and the same metrics."""
    assert run_here(run_distill.run, *pipeline.overrides, *NO_TEACHER, f"hydra.run.dir={tmp_path}") == 0
    ours = load_file(tmp_path / "models" / "distill" / "model.safetensors")
    baseline = load_file(pipeline.folder / "models" / "baseline" / "model.safetensors")
    assert all(torch.equal(ours[name], baseline[name]) for name in baseline)
    mine, theirs = (
        read(f / "metrics" / f"eval_{s}.json")["metrics"]
        for f, s in ((tmp_path, "distill"), (pipeline.folder, "baseline"))
    )
    assert mine == theirs


def test_a_refusal_helper_sees_other_errors() -> None:
    """`refusal` is used all over: it must not take any exception for a refusal."""
    with pytest.raises(ZeroDivisionError):
        refusal(lambda: 1 / 0)


def test_the_original_programs_result_stands_beside_ours_with_its_protocol(pipeline, tmp_path) -> None:
    """As `distill.engine=submodule` leaves it; here beside a baseline that is below the references."""
    folder = tmp_path / "run"
    for part in ("models/baseline", "metrics", "records"):
        shutil.copytree(pipeline.folder / part, folder / part)
    ours = read(folder / "metrics" / "eval_baseline.json")
    for file in (*folder.glob("metrics/*_distill.*"), folder / "records" / "distill.json"):
        file.unlink()
    metrics = {"ndcg@10": 0.4321, "recall@10": 0.5}
    theirs = {**ours, "protocol": "chosen on test", "metrics": metrics, "metrics_masked": {}}
    (folder / "metrics" / "eval_dllm2rec_upstream.json").write_text(json.dumps(theirs))
    upstream = RunFolder(folder).artefact("dllm2rec_upstream")
    upstream.begin(read(folder / "records" / "baseline.json")["made_from"])
    upstream.complete(0.5)

    assert run_here(run_eval_all.run, *pipeline.overrides, f"hydra.run.dir={folder}", f"eval.run_dir={folder}") == 0

    summary = pd.read_csv(folder / "metrics" / "summary.csv", index_col="model")
    models = ["most popular", "Markov chain", "chain + TF-IDF", "teacher", "student, baseline", "DLLM2Rec's program"]
    assert list(summary.index) == models
    assert summary.loc["DLLM2Rec's program", "ndcg@10"] == 0.4321
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "a protocol of its own (chosen on test): do not compare" in report
    assert "Only one student was found" in report
    assert "Below Markov chain: student, baseline. " in report and "Below chain + TF-IDF: student, baseline. " in report
    assert "A student below a reference is not worth distilling." in report


# --- fair comparisons ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_student(pipeline, tmp_path_factory):
    """A Caser of one epoch under another seed, beside a copy of the pipeline's distilled SASRec."""
    folder = tmp_path_factory.mktemp("unlike") / "run"
    shutil.copytree(pipeline.folder, folder)
    changes = ("student=caser", "student.emb_size=8", "student.hidden_size=8", "student.num_epochs=1", "general.seed=5")
    shutil.rmtree(folder / "models" / "baseline")
    assert run_here(run_student_baseline.run, *pipeline.overrides, *changes, f"hydra.run.dir={folder}") == 0
    return folder


def test_unlike_students_get_no_verdict_and_no_percentage(pipeline, other_student) -> None:
    where = (f"hydra.run.dir={other_student}", f"eval.run_dir={other_student}")
    assert run_here(run_eval_all.run, *pipeline.overrides, *where) == 0
    report = (other_student / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert "not comparable: general.seed 5 / 42, student.name caser / sasrec" in report
    assert "student.num_epochs 1 / 2" in report
    assert not re.search(r"[+-]\d+\.\d %", report) and "distilled - baseline" not in report
    assert "distilled - most popular" in report  # what may be compared still is


def test_another_runs_student_is_a_partner_only_if_it_fits(pipeline, other_student, tmp_path) -> None:
    results = tmp_path / "result"
    shutil.copytree(other_student, results / "unlike")
    (results / "unlike" / "records" / "distill.json").unlink()
    shutil.copytree(pipeline.folder, results / "mine")
    (results / "mine" / "records" / "baseline.json").unlink()
    overrides = [*TINY_STUDENT, *places(pipeline.data_dir, results, results / "mine")]
    assert run_here(run_eval_all.run, *overrides) == 0
    log = (results / "mine" / "logs" / "eval_all.log").read_text()
    assert f"no baseline fits; the nearest, of {results / 'unlike'}, does not: general.seed 5 / 42" in log
    assert "student, baseline" not in pd.read_csv(results / "mine" / "metrics" / "summary.csv")["model"].tolist()


def test_runs_of_other_seeds_must_differ_in_nothing_else(pipeline, other_student, tmp_path, capsys) -> None:
    where = (f"hydra.run.dir={tmp_path / 'run'}", f"eval.run_dir={pipeline.folder}")
    assert run_here(run_eval_all.run, *pipeline.overrides, *where, f"eval.seed_dirs=[{other_student}]") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "in more than its seed: student.name sasrec / caser" in error


def test_an_untrained_teacher_is_called_that_and_its_embeddings_do_alone(pipeline, tmp_path) -> None:
    """First of some rows' rankings, then without any: what needs them says so, what does not is distilled."""
    folder, outputs = tmp_path / "result" / "run", tmp_path / "outputs"
    where = [*places(pipeline.data_dir, tmp_path / "result"), f"paths.teacher_outputs_dir={outputs}"]
    chosen = [*TINY_STUDENT, *TINY_TEACHER, *where, "teacher.num_epochs=0", "teacher.export.max_rows=50"]
    for stage in (run_teacher, run_student_baseline, run_distill, run_eval_all):
        assert run_here(stage.run, *chosen, f"hydra.run.dir={folder}") == 0
    assert "The teacher was not trained (teacher.num\\_epochs=0)" in (folder / "report.md").read_text()
    assert read(folder / "metrics" / "eval_teacher.json")["model"] == "ilora_tiny, not trained"
    assert "the teacher was asked for 50 of 600 training rows" in (folder / "logs" / "train_distill.log").read_text()

    alone = [*chosen, "teacher.export.rankings=false", "general.overwrite=true"]
    assert run_here(run_teacher.run, *alone, f"hydra.run.dir={folder}") == 0
    other = f"hydra.run.dir={tmp_path / 'result' / 'other'}"
    message = refusal(lambda: run_here(run_distill.run, *alone, other, full_error=True))
    assert message.startswith(f"{outputs / 'myrank_train.txt'}: missing file; the export holds embeddings alone")
    assert run_here(run_distill.run, *alone, other, "distill.lambda=0") == 0
