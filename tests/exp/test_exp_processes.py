"""The teacher's stage in two processes, as `torchrun` starts them."""

import os
import shutil
import subprocess
import sys

from harness import ROOT, TINY_STUDENT, TINY_TEACHER, make_data_dir, places, run_here, snapshot

from src.exp import run_teacher

ROWS = "dataset.max_train_rows=1500"  # two shards of the export, one for each process


def settings(folder) -> list[str]:
    data_dir = make_data_dir(folder / "data")
    return [*TINY_STUDENT, *TINY_TEACHER, ROWS, *places(data_dir, folder / "result", folder / "result" / "run")]


def run_two_processes(overrides: list[str]) -> str:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "src.exp.run_teacher", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_processes_leave_the_files_of_one(tmp_path) -> None:
    overrides = settings(tmp_path / "two")
    told = run_two_processes(overrides)
    assert "export: 1024/1024 rows" in told and "(1500 rows, 200 items)" in told
    shutil.rmtree(tmp_path / "two" / "data" / "teacher_outputs")
    told = run_two_processes(overrides)
    assert "teacher_export: made again" in told and "training the adapter" not in told

    assert run_here(run_teacher.run, *settings(tmp_path / "one")) == 0
    one, two = snapshot(tmp_path / "one"), snapshot(tmp_path / "two")
    computed = [name for name in one if name.startswith("data/teacher_outputs") or name.endswith(".safetensors")]
    computed += [f"result/run/metrics/{name}" for name in ("eval_teacher.json", "ranks_teacher.npz")]
    assert len(computed) == 5 + 3 + 2
    assert {name for name in computed if one[name] != two.get(name)} == set()
    assert not any("/shards/" in name for name in two)
