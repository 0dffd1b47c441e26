"""Equal seeds give equal results; a sweep gives one folder per job and guesses nothing."""

from types import SimpleNamespace

import pytest
import torch
from harness import TINY_STUDENT, places, read, record, run_here, run_processes
from omegaconf import OmegaConf
from safetensors.torch import load_file

from src.exp import run_distill, run_eval_all, run_student_baseline
from src.exp.stage.multirun import JobFailed, SweepWatch, _read_squeue, _results, _squeue_command


def outcome_of(folder, stage: str = "baseline") -> tuple[dict, dict[str, torch.Tensor]]:
    """Metrics and weights."""
    evaluation = read(folder / "metrics" / f"eval_{stage}.json")
    return evaluation, load_file(folder / "models" / stage / "model.safetensors")


def test_equal_seeds_give_equal_metrics_and_weights_and_other_seeds_others(data_dir, tmp_path) -> None:
    found = []
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        folder = tmp_path / name
        where = places(data_dir, tmp_path, folder)
        assert run_here(run_student_baseline.run, *TINY_STUDENT, *where, f"general.seed={seed}") == 0
        found.append(outcome_of(folder))
    (one, weights), (same, same_weights), (other, other_weights) = found
    assert one == same and one["metrics"] != other["metrics"]
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)
    assert not torch.equal(weights["output.weight"], other_weights["output.weight"])


def test_a_process_repeats_what_this_one_computes(pipeline, tmp_path) -> None:
    """The pipeline's baseline, trained by another process."""
    assert run_here(run_student_baseline.run, *pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}") == 0
    (here, weights), (there, other) = outcome_of(tmp_path / "run"), outcome_of(pipeline.folder)
    assert here["metrics"] == there["metrics"]
    assert all(torch.equal(weights[name], other[name]) for name in weights)


def test_an_equal_seed_repeats_the_distillation(pipeline, tmp_path) -> None:
    assert run_here(run_distill.run, *pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}") == 0
    (here, weights), (there, other) = outcome_of(tmp_path / "run", "distill"), outcome_of(pipeline.folder, "distill")
    assert here["metrics"] == there["metrics"]
    assert all(torch.equal(weights[name], other[name]) for name in weights)


@pytest.fixture(scope="module")
def sweep(data_dir, tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    overrides = ("-m", *TINY_STUDENT, *places(data_dir, root), "student.lr=1e-3,3e-3", "general.seed=1,2")
    (outcome,) = run_processes(tmp_path_factory.mktemp("printed"), ("run_student_baseline", *overrides))
    outcome.expect_success()
    (folder,) = root.iterdir()
    return folder


def test_a_sweep_makes_one_folder_per_job_with_its_own_numbers(sweep) -> None:
    assert sweep.name.startswith("result_")
    assert {path.name for path in sweep.iterdir()} == {"0", "1", "2", "3", "multirun.yaml"}
    jobs = [sweep / str(number) for number in range(4)]
    tried = [OmegaConf.load(job / ".hydra" / "baseline" / "config.yaml") for job in jobs]
    assert [(cfg.student.lr, cfg.general.seed) for cfg in tried] == [(1e-3, 1), (1e-3, 2), (3e-3, 1), (3e-3, 2)]
    evaluations = [read(job / "metrics" / "eval_baseline.json") for job in jobs]
    assert [evaluation["seed"] for evaluation in evaluations] == [1, 2, 1, 2]
    assert len({evaluation["metrics"]["mrr"] for evaluation in evaluations}) == 4
    for job in jobs:
        log = (job / "logs" / "train_student_baseline.log").read_text()
        assert f"stage baseline in {job}" in log and log.count("stage baseline in") == 1
        assert set(read(job / "metrics" / "time.json")) == {"student_baseline_train_time"}


def test_a_job_of_a_sweep_gives_what_a_single_run_gives(sweep, data_dir, tmp_path) -> None:
    overrides = (*TINY_STUDENT, *places(data_dir, tmp_path, tmp_path / "run"), "student.lr=3e-3", "general.seed=1")
    assert run_here(run_student_baseline.run, *overrides) == 0
    (alone, weights), (job, job_weights) = outcome_of(tmp_path / "run"), outcome_of(sweep / "2")
    assert alone["metrics"] == job["metrics"]
    assert all(torch.equal(weights[name], job_weights[name]) for name in weights)


SWEEP = ("-m", "general.seed=42,1")
FROM_BASELINE = ("distill.init=baseline", "distill.lambda=0", "distill.ed_weight=0", "distill.num_epochs=1")


def test_a_job_takes_the_baseline_of_its_own_seed_and_no_other(pipeline, tmp_path, capsys) -> None:
    """The pipeline's is of seed 42; one of another seed would make the student another than its settings say."""
    where = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    assert run_here(run_distill.run, *SWEEP, *pipeline.overrides, *FROM_BASELINE, where) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    missing = "1 (general.seed=1): distill.init_checkpoint=null: no finished baseline of dataset sample with"
    assert len(errors) == 1 and errors[0].startswith(f"error: 1 of 2 jobs failed: {missing}")
    taken = record(tmp_path / "sweep" / "0", "distill")["made_from"]["the initial weights"]
    assert taken == record(pipeline.folder, "baseline")["files"]["models/baseline/model.safetensors"]


def test_a_sweep_guesses_no_run_to_evaluate(pipeline, tmp_path, capsys) -> None:
    where = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    assert run_here(run_eval_all.run, *SWEEP, *pipeline.overrides, where) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    refused = "eval.run_dir=null: must be given under multirun, because guessing a run could mix seeds"
    assert len(errors) == 1
    assert errors[0].startswith(f"error: 2 of 2 jobs failed: 0 (general.seed=42), 1 (general.seed=1): {refused}; ")


def test_a_sweep_takes_the_explicit_keys(pipeline, tmp_path) -> None:
    checkpoint = pipeline.folder / "models" / "baseline"
    overrides = (
        "distill.init=baseline",
        f"distill.init_checkpoint={checkpoint}",
        "distill.lambda=0,0.5",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    )
    assert run_here(run_distill.run, "-m", *pipeline.overrides, *overrides) == 0
    losses = [read(tmp_path / "sweep" / job / "metrics" / "eval_distill.json")["metrics"] for job in ("0", "1")]
    assert losses[0] != losses[1]
    run_dir = (f"eval.run_dir={pipeline.folder}", f"hydra.sweep.dir={tmp_path / 'evals'}")
    assert run_here(run_eval_all.run, "-m", *pipeline.overrides, "metrics.monitor=ndcg@10,mrr", *run_dir) == 0
    assert (tmp_path / "evals" / "1" / "report.md").is_file()


def test_entry_points_return_their_best_validation_value(pipeline, tmp_path) -> None:
    values = []

    def stage(cfg) -> float:
        values.append(run_student_baseline.run(cfg))
        return values[-1]

    assert run_here(stage, *pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}") == 0
    info = read(tmp_path / "run" / "models" / "baseline" / "config.json")["info"]
    assert values == [info["valid_value"]]


# --- jobs of a cluster --------------------------------------------------------------------------------------


def test_what_slurm_says_of_jobs() -> None:
    """Of those still waited for: what has not ended, however Slurm calls it, runs; what it forgot has ended."""
    watcher = SimpleNamespace(_registered={"7_0", "7_1", "7_2", "7_3", "7_4"}, _finished={"7_0"})
    assert _squeue_command(watcher)[:2] == ["squeue", "--me"]
    printed = b"7_0|COMPLETED\n7_1|CANCELLED\n7_2|CONFIGURING\n7_3|PENDING\n9_1|RUNNING\n"
    states = {job: info["State"] for job, info in _read_squeue(watcher, printed).items()}
    assert states == {"7_1": "CANCELLED", "7_2": "RUNNING", "7_3": "RUNNING", "7_4": "no longer in the queue"}
    watcher._finished = watcher._registered
    assert _squeue_command(watcher) is None


@pytest.mark.parametrize("left", [None, ("error", "Traceback ...\n  line\nMemoryError: all of it\n")])
def test_a_job_that_left_no_result_is_a_failed_one_and_no_exception(left, tmp_path, monkeypatch, capsys) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(SweepWatch, "lost", {})

    def outcome() -> tuple[str, str]:
        if left is None:
            raise submitit.core.utils.UncompletedJobError("no output")
        return left

    (tmp_path / "log.err").touch()
    job = SimpleNamespace(
        job_id="7_2",
        state="TIMEOUT",
        wait=lambda: None,
        _get_outcome_and_result=outcome,
        submission=lambda: SimpleNamespace(args=(["general.seed=3"], "hydra.sweep.dir", 2, "id", {})),
        paths=SimpleNamespace(stderr=tmp_path / "log.err", folder=tmp_path),
    )
    (returned,) = _results(job)
    reason = "TIMEOUT" if left is None else "MemoryError: all of it"
    said = f"job 7_2 of the cluster has left no result ({reason}); see {tmp_path / 'log.err'}"
    assert SweepWatch.lost == {"2": said} and said in capsys.readouterr().err
    with pytest.raises(JobFailed, match="job 7_2 of the cluster"):
        _ = returned.return_value
