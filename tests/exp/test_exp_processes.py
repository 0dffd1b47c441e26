"""The teacher's stage in two processes: of two nodes that `torchrun` brings together, then of one node."""

import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

from harness import (
    TINY_STUDENT,
    TINY_TEACHER,
    Outcome,
    make_data_dir,
    places,
    run_here,
    run_module,
    run_processes,
    snapshot,
)

from src.exp import run_teacher

ROWS = "dataset.max_train_rows=1500"  # two shards of the export, one for each process


def settings(folder) -> list[str]:
    data_dir = make_data_dir(folder / "data")
    return [*TINY_STUDENT, *TINY_TEACHER, ROWS, *places(data_dir, folder / "result", folder / "result" / "run")]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def run_two_nodes(overrides: list[str]) -> str:
    """`torchrun` twice, as on two machines with one GPU each, which meet at an address; returns what they say."""
    meeting = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    command = ("torch.distributed.run", *meeting, "--rdzv_id=1", "-m", "src.exp.run_teacher", *overrides)

    def start(node: int) -> Outcome:
        # Told who is the host: on one machine both find the address to be their own and may wait for each other.
        return run_module(
            *command, GLOO_SOCKET_IFNAME="lo", PET_NODE_RANK=str(node), PET_RDZV_CONF=f"is_host={1 - node}"
        )

    with ThreadPoolExecutor() as threads:
        return "".join(outcome.expect_success().err for outcome in threads.map(start, (0, 1)))


def run_two_processes(folder, overrides: list[str]) -> str:
    port = free_port()
    world = {"WORLD_SIZE": ["2", "2"], "LOCAL_WORLD_SIZE": ["2", "2"], "RANK": ["0", "1"], "LOCAL_RANK": ["0", "1"]}
    address = {"MASTER_ADDR": ["127.0.0.1"] * 2, "MASTER_PORT": [port] * 2}
    first, second = run_processes(folder, *2 * [("run_teacher", *overrides)], **world, **address)
    second.expect_success()
    return first.expect_success().err


def test_two_processes_leave_the_files_of_one(tmp_path) -> None:
    overrides = settings(tmp_path / "two")
    told = run_two_nodes(overrides)
    assert "export: 1024/1024 rows" in told and "(1500 rows, 200 items)" in told
    shutil.rmtree(tmp_path / "two" / "data" / "teacher_outputs")
    told = run_two_processes(tmp_path / "printed", overrides)
    assert "teacher_export: made again" in told and "training the adapter" not in told

    assert run_here(run_teacher.run, *settings(tmp_path / "one")) == 0
    one, two = snapshot(tmp_path / "one"), snapshot(tmp_path / "two")
    computed = [name for name in one if name.startswith("data/teacher_outputs") or name.endswith(".safetensors")]
    computed += [f"result/run/metrics/{name}" for name in ("eval_teacher.json", "ranks_teacher.npz")]
    assert len(computed) == 6 + 3 + 2
    assert {name for name in computed if one[name] != two.get(name)} == set()
    assert not any("/shards/" in name for name in two)
