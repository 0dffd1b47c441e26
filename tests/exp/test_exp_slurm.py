"""Jobs on a real Slurm, of which one is killed: a study and a sweep go on, an export in parts is joined."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import (
    ONE_THREAD,
    ROOT,
    TINY_STUDENT,
    TINY_TEACHER,
    Outcome,
    make_data_dir,
    places,
    record,
    run_here,
    run_process,
    snapshot,
)
from slurm_cluster import slurm_cluster, why_not

from src.exp import run_study, run_teacher

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
LAUNCHER = [
    "hydra/launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
]
LONG = "student.num_epochs=200"  # some seconds, so that a job can be met at work
SEEDS = "1,2"  # of which one waits until the node's one slot is free


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield {"SLURM_CONF": environment["SLURM_CONF"]}


def ask(slurm: dict[str, str], *command: str) -> str:
    environment = {**os.environ, **slurm, **ONE_THREAD}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def wait_for(what: Callable[[], object], seconds: int = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.2)


def queue(slurm: dict[str, str], state: str) -> list[str]:
    """Ids of the jobs in a state, an array's tasks one by one."""
    return ask(slurm, "squeue", "--me", "--array", "--noheader", f"--states={state}", "--format=%i").split()


def test_a_study_goes_on_after_a_job_was_cancelled(slurm, data_dir, tmp_path) -> None:
    def words(folder: Path) -> list[str]:
        asked = ["study=selection", "~study.variants", f"study.seeds=[{SEEDS}]", LONG, "student.patience=200"]
        return [*TINY_STUDENT, *asked, *places(data_dir, tmp_path, folder)]

    there, alone = tmp_path / "there", tmp_path / "alone"
    with ThreadPoolExecutor() as threads:
        study: Future[Outcome] = threads.submit(run_process, "run_study", *words(there), *LAUNCHER, **slurm)
        wait_for(lambda: queue(slurm, "RUNNING") and queue(slurm, "PENDING"))
        (waiting,), (running,) = queue(slurm, "PENDING"), queue(slurm, "RUNNING")
        assert waiting.endswith("_1") and running == waiting.replace("_1", "_0")
        wait_for(lambda: (there / "runs/baseline/seed_1/records/baseline.json").is_file())
        ask(slurm, "scancel", running)
        study.result().expect_error(
            "1 of 2 runs of baseline failed: runs/baseline/seed_1: it was cut off; the same command with "
            f"hydra.run.dir={there} trains only what is missing"
        )
    assert "job 0 failed: job" in study.result().err and "has left no result (CANCELLED)" in study.result().err
    before = record(there / "runs/baseline/seed_2", "baseline")
    assert run_here(run_study.run, *words(there)) == 0
    assert record(there / "runs/baseline/seed_2", "baseline") == before

    assert run_here(run_study.run, *words(alone)) == 0
    one, other = snapshot(there), snapshot(alone)
    result = [name for name in other if name.endswith((".safetensors", ".npz", "selection.csv"))]
    assert len(result) == 2 * 2 + 1
    assert {name for name in result if one.get(name) != other[name]} == set()


def test_a_sweep_names_the_job_that_never_began(slurm, data_dir, tmp_path) -> None:
    call = ["-m", *TINY_STUDENT, *places(data_dir, tmp_path), f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    call += [f"general.seed={SEEDS}", *LAUNCHER]
    with ThreadPoolExecutor() as threads:
        sweep: Future[Outcome] = threads.submit(run_process, "run_student_baseline", *call, **slurm)
        wait_for(lambda: queue(slurm, "RUNNING") and queue(slurm, "PENDING"))
        (waiting,) = queue(slurm, "PENDING")
        ask(slurm, "scancel", waiting)
        sweep.result().expect_error(
            f"error: 1 of 2 jobs failed: 1: job {waiting} of the cluster has left no result (",
            f"; the same command with hydra.sweep.dir={tmp_path / 'sweep'} repeats only what is not finished",
        )
    assert record(tmp_path / "sweep" / "0", "baseline")["completed"]


def test_an_array_exports_what_one_process_does(slurm, tmp_path) -> None:
    """Two tasks in turns, the second cancelled before it began, and submitted again."""

    def words(folder: Path) -> list[str]:
        where = places(make_data_dir(folder / "data"), folder / "result", folder / "result" / "run")
        return [*TINY_STUDENT, *TINY_TEACHER, "dataset.max_train_rows=1500", *where]  # two shards

    call = words(tmp_path / "array")
    script = tmp_path / "job.sh"
    script.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m src.exp.run_teacher "$@" teacher.export.part=$SLURM_ARRAY_TASK_ID/2\n'
    )

    def submit(tasks: str) -> str:
        out = f"--output={tmp_path}/task_%a.out"
        return ask(slurm, "sbatch", "--parsable", f"--array={tasks}", out, str(script), *call)

    job = submit("0-1%1")
    wait_for(lambda: queue(slurm, "RUNNING") == [f"{job}_0"])
    ask(slurm, "scancel", f"{job}_1")
    wait_for(lambda: not queue(slurm, "RUNNING,COMPLETING"))
    submit("1-1")
    wait_for(lambda: not queue(slurm, "RUNNING,PENDING,COMPLETING"))
    told = [(tmp_path / f"task_{number}.out").read_text() for number in (0, 1)]
    assert "training the adapter" in told[0] and "training the adapter" not in told[1]
    assert ["export: 1024/1024 rows" in told[0], "export: 476/476 rows" in told[1]] == [True, True], told
    assert not (tmp_path / "array" / "data" / "teacher_outputs" / "sample" / "manifest.json").exists()

    assert run_here(run_teacher.run, *call) == 0
    log = (tmp_path / "array" / "result" / "run" / "logs" / "train_teacher.log").read_text()
    assert "export: 1500 of 1500 rows are there already" in log
    assert run_here(run_teacher.run, *words(tmp_path / "one")) == 0
    one, array = snapshot(tmp_path / "one"), snapshot(tmp_path / "array")
    made = [name for name in one if name.startswith("data/teacher_outputs")] + ["result/run/metrics/eval_teacher.json"]
    assert len(made) == 6 + 1
    assert {name for name in made if one[name] != array.get(name)} == set()
    assert not any("/shards/" in name or "time_part" in name for name in array)
