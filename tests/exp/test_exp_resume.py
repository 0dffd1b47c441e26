"""A run folder that is started again: what is complete and unchanged is skipped, what was interrupted goes on."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from harness import ROOT, TINY_STUDENT, places, read, record, run_here, run_processes, snapshot

from src.exp import run_distill, run_student_baseline, run_teacher
from src.teacher.scoring.evaluation import generate_answers
from src.teacher.training import _step

RECORDS = {"teacher": ("teacher", "teacher_export", "teacher_evaluation", "recommender", "tiny_llm")}
ENTRY_POINTS = {"teacher": run_teacher.run, "baseline": run_student_baseline.run, "distill": run_distill.run}


def cut_off_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let the `number`-th optimizer step fail as a Ctrl-C does."""
    step, left = torch.optim.Adam.step, iter(range(number - 1))

    def counted(self, *args, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    patch.setattr(torch.optim.Adam, "step", counted)


def kill_at(original, call: int):
    """The function, cut off where it is called for the `call`-th time."""
    left = iter(range(call - 1))

    def counted(*args, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(*args, **options)

    return counted


def log_of_teacher(folder) -> str:
    return (folder / "logs" / "train_teacher.log").read_text()


def without(folder, copy, stage: str):
    """A copy of a run folder in which a stage has not begun."""
    shutil.copytree(folder, copy)
    for path in (*copy.glob(f"metrics/*_{stage}.*"), *copy.glob(f"logs/*{stage}.log")):
        path.unlink()
    for path in (copy / "models" / stage, copy / ".hydra" / stage, copy / "tb" / stage):
        shutil.rmtree(path)
    for name in RECORDS.get(stage, (stage,)):
        (copy / "records" / f"{name}.json").unlink()
    return copy


def run_script(tmp_path, script: str, *arguments: str) -> None:
    """A script of cmd/, its `poetry run python -m ...` in this process: most of a process is to import PyTorch."""
    shutil.copytree(ROOT / "cmd", tmp_path / "project" / "cmd")
    calls = tmp_path / "calls"
    for name, text in {
        "project/.venv/bin/python": "",
        "bin/poetry": f'#!/bin/sh\nprintf "%s\\n" "$@" "" >>"{calls}"\n',
        "site.sh": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "ENV_SHELL": str(tmp_path / "site.sh")}
    command = ["bash", str(tmp_path / "project" / "cmd" / f"{script}.sh"), *arguments]
    subprocess.run(command, env={**os.environ, **environment}, capture_output=True, timeout=60, check=True)
    for call in calls.read_text().split("\n\n")[:-1]:
        _, _, _, module, *overrides = call.splitlines()
        assert run_here(import_module(module).run, *overrides) == 0


def test_a_pipeline_killed_while_it_distils_ends_as_one_that_was_not(pipeline, tmp_path, capsys) -> None:
    folder = without(pipeline.folder, tmp_path / "run", "distill")
    before = snapshot(folder)
    overrides = [*pipeline.overrides, f"hydra.run.dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        cut_off_at(patch, 5)  # of 3 an epoch: in the middle of the second
        assert run_here(run_distill.run, *overrides) == 130
    assert (folder / "models" / "distill" / "last_state.pt").is_file()
    spent = read(folder / "metrics" / "time.json")["distill_student_train_time"]

    run_script(tmp_path, "run_all_pipeline", *overrides)

    printed = capsys.readouterr().err
    for stage in ("teacher", "baseline"):
        assert f"stage {stage}: skipped: complete and unchanged" in printed
    assert "going on after epoch 1" in printed
    whole, again = snapshot(pipeline.folder), snapshot(folder)
    kept = ("models/", ".hydra/teacher", ".hydra/baseline", "records/teacher", "records/baseline")
    assert {name for name in before if name.startswith(kept) and again[name] != before[name]} == set()
    same = [f"models/distill/{name}" for name in ("model.safetensors", "config.json")]
    same += [f"metrics/{name}" for name in ("history_distill.csv", "eval_distill.json", "summary.csv")]
    assert {name: whole[name] for name in same} == {name: again[name] for name in same}
    assert {n for n in whole if not n.startswith("tb/")} == {n for n in again if not n.startswith("tb/")}
    assert read(folder / "metrics" / "time.json")["distill_student_train_time"] > spent


def test_a_teacher_killed_while_it_trains_and_while_it_writes_ends_as_one_that_was_not(pipeline, tmp_path) -> None:
    folder, outputs = without(pipeline.folder, tmp_path / "run", "teacher"), tmp_path / "outputs"
    overrides = [*pipeline.overrides, f"hydra.run.dir={folder}", f"paths.teacher_outputs_dir={outputs}"]

    def interrupted(name: str, call: int) -> None:
        """The teacher's stage, cut off where it calls a function of its own for the `call`-th time."""
        module, _, attribute = name.rpartition(".")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(name, kill_at(getattr(import_module(module), attribute), call))
            assert run_here(run_teacher.run, *overrides) == 130

    interrupted("src.teacher.training._step", 3)  # of 4
    interrupted("src.teacher.scoring.export.write_teacher_files", 1)
    assert not (outputs / "manifest.json").exists()
    assert run_here(run_teacher.run, *overrides) == 0

    def made(teacher_outputs, run) -> dict[str, str]:
        weights = {n: h for n, h in snapshot(run / "models" / "teacher").items() if n.endswith(".safetensors")}
        return {
            **snapshot(teacher_outputs),
            **weights,
            "metrics": read(run / "metrics" / "eval_teacher.json")["metrics"],
        }

    assert made(outputs, folder) == made(pipeline.teacher_outputs, pipeline.folder)


def test_a_finished_teacher_whose_files_are_gone_or_damaged_exports_again_without_training(pipeline, tmp_path) -> None:
    folder, outputs = tmp_path / "run", tmp_path / "outputs"
    shutil.copytree(pipeline.folder, folder)
    overrides = [*pipeline.overrides, f"hydra.run.dir={folder}", f"paths.teacher_outputs_dir={outputs}"]
    before = snapshot(folder / "models")

    assert run_here(run_teacher.run, *overrides) == 0
    assert snapshot(outputs) == snapshot(pipeline.teacher_outputs)
    (outputs / "myrank_train.txt").write_text("0\n")
    assert run_here(run_teacher.run, *overrides) == 0
    assert snapshot(outputs) == snapshot(pipeline.teacher_outputs)
    text = (folder / "logs" / "train_teacher.log").read_text()
    assert f"teacher_export: made again: {outputs / 'all_embeddings.pt'} is gone" in text
    assert f"teacher_export: made again: {outputs / 'myrank_train.txt'} is no longer what was written" in text
    assert text.count("training the adapter") == 1
    assert snapshot(folder / "models") == before

    log = text
    assert run_here(run_teacher.run, *overrides) == 0
    assert (folder / "logs" / "train_teacher.log").read_text() == log


def test_a_finished_teacher_does_not_replace_the_export_of_another(pipeline, tmp_path, capsys) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(pipeline.teacher_outputs, outputs)
    manifest = read(outputs / "manifest.json")
    manifest["adapter_sha256"] = manifest["made_with"]["adapter_sha256"] = "0" * 64
    (outputs / "manifest.json").write_text(json.dumps(manifest))
    shutil.copytree(pipeline.folder, tmp_path / "run")
    overrides = [*pipeline.overrides, f"hydra.run.dir={tmp_path / 'run'}", f"paths.teacher_outputs_dir={outputs}"]

    assert run_here(run_teacher.run, *overrides) == 1
    assert "holds the export of another teacher" in capsys.readouterr().err
    assert read(outputs / "manifest.json") == manifest
    assert run_here(run_teacher.run, *overrides, "general.overwrite=true") == 0
    assert snapshot(outputs) == snapshot(pipeline.teacher_outputs)


def test_a_teacher_whose_training_is_done_is_not_trained_again_for_another_export(pipeline, tmp_path) -> None:
    """Neither after an interruption nor when it was complete; what was exported is its own to replace."""
    folder, outputs = without(pipeline.folder, tmp_path / "run", "teacher"), tmp_path / "outputs"
    overrides = [*pipeline.overrides, f"hydra.run.dir={folder}", f"paths.teacher_outputs_dir={outputs}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.teacher.scoring.evaluation.generate_answers", kill_at(generate_answers, 1))  # 1: validation
        assert run_here(run_teacher.run, *overrides) == 130
    adapter = (folder / "models" / "teacher" / "adapter" / "adapter_model.safetensors").read_bytes()
    spent = read(folder / "metrics" / "time.json")
    assert not (folder / "metrics" / "eval_teacher.json").exists()

    # After the export: it stays, also with general.overwrite, which an export of another teacher may have wanted.
    assert run_here(run_teacher.run, *overrides, "general.overwrite=true", "teacher.export.batch_tokens=512") == 0
    again = read(folder / "metrics" / "time.json")
    assert again["teacher_train_time_total"] == spent["teacher_train_time_total"]
    assert log_of_teacher(folder).count("exporting 600 of 600 rows") == 1

    changed = "teacher.export.top_n=3"
    assert run_here(run_teacher.run, *overrides, changed) == 1
    assert run_here(run_teacher.run, *overrides, changed, "general.overwrite=true") == 0
    assert read(outputs / "manifest.json")["top_n"] == 3
    assert (folder / "models" / "teacher" / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert log_of_teacher(folder).count("training the adapter") == 1
    assert read(folder / "metrics" / "time.json")["teacher_train_time_total"] == spent["teacher_train_time_total"]


def test_an_interrupted_teacher_goes_on_with_smaller_micro_batches(pipeline, tmp_path) -> None:
    folder, outputs = without(pipeline.folder, tmp_path / "run", "teacher"), tmp_path / "outputs"
    overrides = [*pipeline.overrides, f"hydra.run.dir={folder}", f"paths.teacher_outputs_dir={outputs}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.teacher.training._step", kill_at(_step, 3))
        assert run_here(run_teacher.run, *overrides, "teacher.save_steps=1") == 130
    assert run_here(run_teacher.run, *overrides, "teacher.save_steps=1", "teacher.micro_batch_size=2") == 0
    assert "teacher: goes on although teacher.micro_batch_size changed from 8 to 2" in log_of_teacher(folder)
    assert "going on after step 2 of 4" in log_of_teacher(folder)


def test_a_teacher_that_is_trained_anew_replaces_its_own_export_and_its_times(pipeline, tmp_path) -> None:
    folder, outputs = without(pipeline.folder, tmp_path / "run", "teacher"), tmp_path / "outputs"
    overrides = [*pipeline.overrides, f"hydra.run.dir={folder}", f"paths.teacher_outputs_dir={outputs}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.teacher.scoring.evaluation.generate_answers", kill_at(generate_answers, 1))
        assert run_here(run_teacher.run, *overrides) == 130
    times = dict.fromkeys(read(folder / "metrics" / "time.json"), 1e6)
    (folder / "metrics" / "time.json").write_text(json.dumps(times))
    before = read(outputs / "manifest.json")
    assert run_here(run_teacher.run, *overrides, "teacher.lr=5e-4") == 1  # its training is complete: nothing is lost
    assert run_here(run_teacher.run, *overrides, "teacher.lr=5e-4", "general.overwrite=true") == 0
    assert read(outputs / "manifest.json")["adapter_sha256"] != before["adapter_sha256"]
    now = read(folder / "metrics" / "time.json")
    assert max(now["teacher_train_time_total"], now["distill_teacher_export_time"]) < 1e5
    assert now["distill_student_train_time"] == 1e6


NO_EFFECT = {
    "teacher": ("student.lr=1", "distill.alpha=3", "teacher.save_interval=2", "teacher.export.batch_tokens=512"),
    "baseline": ("distill.alpha=3", "teacher.lr=1", "student.save_interval=2", "logging.level=ERROR"),
    "distill": ("student.save_interval=7", "distill.lr=1e-3", "general.experiment_name=x", "general.overwrite=true"),
}


@pytest.mark.parametrize("stage", NO_EFFECT)
def test_a_complete_stage_is_skipped_and_returns_its_value(pipeline, capsys, stage) -> None:
    """Settings that its numbers do not depend on may differ."""
    before, values = snapshot(pipeline.folder), []

    def run(cfg) -> float:
        values.append(ENTRY_POINTS[stage](cfg))
        return values[-1]

    where = f"hydra.run.dir={pipeline.folder}"
    assert run_here(run, *pipeline.overrides, where, *NO_EFFECT[stage], artefact=stage) == 0
    if stage != "baseline":  # which silences it
        assert f"stage {stage}: skipped: complete and unchanged ({pipeline.folder})" in capsys.readouterr().err
    assert values == [record(pipeline.folder, stage)["value"]]
    if stage != "teacher":
        assert values == [read(pipeline.folder / "models" / stage / "config.json")["info"]["valid_value"]]
    assert snapshot(pipeline.folder) == before


CHANGED = [
    ("baseline", ["student.lr=1e-2"], "baseline", "student.lr changed from 0.001 to 0.01; use another hydra.run.dir"),
    ("baseline", ["student=gru4rec"], "baseline", "student.name changed from sasrec to gru4rec"),
    ("distill", ["distill.alpha=3", "distill.top_k=3"], "distill", "distill.alpha changed from 0.5 to 3.0; distill"),
    ("distill", ["distill.init=baseline"], "distill", "the initial weights changed from None to "),
    ("distill", ["distill.num_epochs=3"], "distill", "student.num_epochs changed from 2 to 3"),
    ("teacher", ["teacher.lr=1"], "teacher", "teacher.lr changed from 0.002 to 1.0"),
    ("teacher", ["dataset.max_train_rows=500"], "teacher", "the data set changed from "),
    ("teacher", ["teacher.export.top_n=3"], "teacher_export", "teacher.export.top_n changed from 4 to 3"),
    ("teacher", ["teacher.max_eval_rows=10"], "teacher_evaluation", "teacher.max_eval_rows changed from 20 to 10"),
]


@pytest.mark.parametrize(("stage", "overrides", "name", "message"), CHANGED, ids=str)
def test_what_is_complete_and_made_from_other_settings_is_refused_and_says_what_differs(
    pipeline, capsys, stage, overrides, name, message
) -> None:
    before = snapshot(pipeline.folder)
    assert run_here(ENTRY_POINTS[stage], *pipeline.overrides, f"hydra.run.dir={pipeline.folder}", *overrides) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{name} is complete there, and " in error
    assert message in error and "general.overwrite=true" in error
    assert snapshot(pipeline.folder) == before


def test_other_teacher_files_are_another_distillation(pipeline, tmp_path, capsys) -> None:
    outputs = shutil.copytree(pipeline.teacher_outputs, tmp_path / "outputs")
    manifest = outputs / "manifest.json"
    where = [*pipeline.overrides, f"hydra.run.dir={pipeline.folder}", f"paths.teacher_outputs_dir={outputs}"]
    assert run_here(run_distill.run, *where) == 0  # the same files elsewhere
    manifest.write_text(manifest.read_text().replace('"seed": 42', '"seed": 43'))
    assert run_here(run_distill.run, *where) == 1
    assert ", and the teacher's files changed from " in capsys.readouterr().err


@pytest.fixture
def baseline(data_dir, tmp_path):
    """A small baseline in a folder of its own; returns its exit code."""

    def run(*overrides: str, cut_off: int | None = None, folder: str = "run") -> int:
        with pytest.MonkeyPatch.context() as patch:
            if cut_off is not None:
                cut_off_at(patch, cut_off)
            where = places(data_dir, tmp_path, tmp_path / folder)
            return run_here(run_student_baseline.run, *TINY_STUDENT, *where, *overrides)

    return run


def result(folder) -> tuple[dict, bytes]:
    return read(folder / "metrics" / "eval_baseline.json"), (folder / "models/baseline/model.safetensors").read_bytes()


def log(folder) -> str:
    return (folder / "logs" / "train_student_baseline.log").read_text()


def test_an_interrupted_stage_with_other_settings_starts_from_the_beginning_and_says_why(baseline, tmp_path) -> None:
    assert baseline(cut_off=5) == 130
    assert baseline("student.lr=1e-2") == 0
    assert "baseline: starts from the beginning: student.lr changed from 0.001 to 0.01" in log(tmp_path / "run")
    assert baseline("student.lr=1e-2", folder="undisturbed") == 0
    assert result(tmp_path / "run") == result(tmp_path / "undisturbed")


def test_a_replacement_that_was_interrupted_is_neither_the_old_result_nor_refused(baseline, tmp_path) -> None:
    assert baseline() == 0
    assert baseline("student.lr=1e-2", "general.overwrite=true", cut_off=5) == 130
    assert "baseline: made again: student.lr changed from 0.001 to 0.01" in log(tmp_path / "run")
    assert not (tmp_path / "run" / "metrics" / "eval_baseline.json").exists()  # its weights are gone
    assert record(tmp_path / "run", "baseline")["completed"] is None

    assert baseline("student.lr=1e-2") == 0
    assert log(tmp_path / "run").count("going on after epoch 1") == 1
    assert baseline("student.lr=1e-2", folder="undisturbed") == 0
    assert result(tmp_path / "run") == result(tmp_path / "undisturbed")


def test_weights_that_are_gone_or_were_replaced_are_made_again(baseline, tmp_path) -> None:
    assert baseline() == 0
    whole = result(tmp_path / "run")
    weights = tmp_path / "run" / "models" / "baseline" / "model.safetensors"
    weights.write_bytes(b"damaged")
    assert baseline() == 0
    assert f"baseline: made again: {weights} is no longer what was written" in log(tmp_path / "run")
    shutil.rmtree(weights.parent)
    assert baseline() == 0
    assert result(tmp_path / "run") == whole


def test_a_refused_command_leaves_no_run_folder(baseline, tmp_path) -> None:
    assert baseline("student.lr=0") == 1
    assert baseline("general.device=tpu9") == 1
    assert baseline("student.batch_size=100000") == 1
    assert not (tmp_path / "run").exists()


def test_two_processes_in_one_run_folder(data_dir, tmp_path) -> None:
    """The second is refused, naming the first; the first ends as if it had been alone."""
    overrides = [*TINY_STUDENT, *places(data_dir, tmp_path, tmp_path / "run"), "student.num_epochs=40"]
    outcomes = run_processes(tmp_path / "printed", *2 * [("run_student_baseline", *overrides)])
    codes = sorted(outcome.code for outcome in outcomes)
    if codes == [0, 0]:  # the second began when the first had ended
        assert any("skipped: complete and unchanged" in outcome.err for outcome in outcomes)
    else:
        refused = next(outcome for outcome in outcomes if outcome.code == 1)
        refused.expect_error(f"{tmp_path / 'run'}: in use by process ", " on ", " since 20")


def test_a_terminated_stage_goes_on_and_its_time_counts(data_dir, tmp_path) -> None:
    overrides = [*TINY_STUDENT, *places(data_dir, tmp_path, tmp_path / "run"), "student.num_epochs=400"]
    command = [sys.executable, "-m", "src.exp.run_student_baseline", *overrides, "student.patience=400"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "epoch 2/400" in line:
            process.terminate()
            break
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"error: terminated; the same command with hydra.run.dir={tmp_path / 'run'} goes on from here" in rest
    assert read(tmp_path / "run" / "metrics" / "time.json")["student_baseline_train_time"] > 0
    assert record(tmp_path / "run", "baseline")["error"] == "it was interrupted"
