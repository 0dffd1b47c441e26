"""Tiny settings and the two ways to run a stage: as a process, and in this process through the same entry point."""

import hashlib
import json
import logging
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from composition import CONF, remember_compositions
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.core.errors import UserError
from src.core.files import LOCK_FILE
from src.core.logging import LOGGER_NAME
from src.exp.report import figures
from src.exp.settings import Settings
from src.exp.stage.entry import run_entry_point

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "raw" / "sample"

TINY_STUDENT = [
    "dataset=sample",
    "dataset.max_train_rows=600",
    "general.device=cpu",
    "student.emb_size=8",
    "student.hidden_size=8",
    "student.max_seq_len=10",
    "student.num_epochs=2",
    "distill.num_epochs=2",
    "distill.top_k=4",
]
TINY_TEACHER = [
    "teacher=ilora_tiny",
    "teacher.engine=native",
    "teacher.batch_size=16",
    "teacher.micro_batch_size=8",
    "teacher.max_train_rows=64",
    "teacher.max_valid_rows=20",
    "teacher.max_eval_rows=20",
    "teacher.max_history=3",
    "teacher.num_candidates=6",
    "teacher.lora.r=4",
    "teacher.lora.num_experts=2",
    "teacher.recommender.num_epochs=1",
    "teacher.export.top_n=4",
    "teacher.export.batch_tokens=4096",
    "teacher.tiny.vocab_size=400",
    "teacher.tiny.hidden_size=16",
    "teacher.tiny.num_layers=3",
    "teacher.tiny.num_heads=2",
    "teacher.tiny.pretrain_steps=3",
    "teacher.tiny.pretrain_batch_size=4",
]


remember_compositions()


@dataclass(frozen=True)
class Outcome:
    """What a stage left behind: exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    def expect_success(self) -> "Outcome":
        assert self.code == 0, self.err
        return self

    def expect_error(self, *parts: str) -> None:
        """Exit code 1, one `error: ` line that holds every part, no stack trace."""
        assert self.code == 1, (self.code, self.err)
        assert len(self.error_lines) == 1, self.err
        assert "Traceback" not in self.err + self.out
        for part in parts:
            assert part in self.error_lines[0], (part, self.error_lines[0])


def make_data_dir(folder: Path) -> Path:
    """A data folder of its own that holds the sample."""
    shutil.copytree(SAMPLE, folder / "raw" / "sample")
    return folder


# Sums of two threads differ in their last bits. Where a machine sets MKL's own variable, PyTorch obeys that one alone.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def places(data_dir: Path, result_root: Path, run_dir: Path | None = None) -> list[str]:
    """Overrides that keep a run away from the project's folders."""
    where = [f"paths.data_dir={data_dir}", f"paths.result_root={result_root}"]
    return [*where, f"hydra.run.dir={run_dir}"] if run_dir else where


def run_process(module: str, *overrides: str, **environment: str) -> Outcome:
    """`python -m src.exp.<module>`: what a shell sees, after the seconds that imports take."""
    return run_module(f"src.exp.{module}", *overrides, **environment)


def run_module(module: str, *arguments: str, **environment: str) -> Outcome:
    """`python -m <module>`, one thread."""
    clean = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**clean, **ONE_THREAD, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


SLOW_TO_IMPORT = [
    "src.exp.teacher_steps",
    "src.exp.study.run",
    "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama",
    "scipy.stats",
]


def run_processes(folder: Path, *calls: tuple[str, ...], **environments: list[str]) -> list[Outcome]:
    """Entry points, each in a process of its own, at once.

    They are forked from a process that has imported the libraries and done nothing else.

    Args:
        folder: for what they print.
        calls: module and overrides of each.
        environments: by variable, its value in each process.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(SLOW_TO_IMPORT)
    folder.mkdir(parents=True, exist_ok=True)
    printed = [(folder / f"out{number}", folder / f"err{number}") for number in range(len(calls))]
    running = []
    for number, (module, *overrides) in enumerate(calls):
        environment = {name: values[number] for name, values in environments.items()}
        running.append(server.Process(target=_run_module, args=(module, overrides, environment, *printed[number])))
        running[-1].start()
    for process in running:
        process.join(300)
    codes = [process.exitcode for process in running]
    assert None not in codes, "still running after 300 s"
    return [Outcome(code, out.read_text(), err.read_text()) for code, (out, err) in zip(codes, printed, strict=True)]


def _run_module(module: str, overrides: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    import torch

    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    os.chdir(ROOT)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = [module, *overrides]
    sys.modules.pop(f"src.exp.{module}", None)  # runpy warns where it is there
    runpy.run_module(f"src.exp.{module}", run_name="__main__", alter_sys=True)


ARTEFACTS = {
    "src.exp.run_teacher": "teacher",
    "src.exp.run_student_baseline": "baseline",
    "src.exp.run_distill": "distill",
    "src.exp.run_eval_all": "eval",
    "src.exp.run_study": "study",
}


def run_here(
    run: Callable[[Settings], float | None],
    *overrides: str,
    full_error: bool = False,
    artefact: str | None = None,
    drawn: bool = False,
) -> int:
    """The entry point of a stage in this process; returns its exit code.

    Args:
        artefact: what it makes; None: what `run`'s module makes.
        drawn: whether plots are to be looked at; else their files are there, and empty, which saves seconds a page.

    Raises:
        Exception: what the stage raised, if `full_error`.
    """
    close_log()
    root = logging.getLogger()  # Hydra configures it in a sweep
    level, handlers = root.level, list(root.handlers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stage", *overrides])
        patch.setenv("HYDRA_FULL_ERROR", "1" if full_error else "0")
        # Hydra composes everything twice, at first only to see whether a YAML sets `hydra.mode`; none does.
        patch.setattr(Hydra, "get_mode", lambda self, config_name, overrides: None)
        answer_in_short(patch)
        if not drawn:
            leave_plots_empty(patch)
        try:
            run_entry_point(run, artefact or ARTEFACTS.get(run.__module__))
        except SystemExit as exit_:
            return int(exit_.code or 0)
        finally:
            close_log()
            root.setLevel(level)
            root.handlers[:] = handlers
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None  # a sweep leaves its own, which relative paths would start from
    return 0


def answer_in_short(patch: pytest.MonkeyPatch) -> None:
    """What an untrained LLM says ends nowhere; the titles of the sample have one token each."""
    patch.setattr("src.teacher.adapter.prompted_lm._MAX_ANSWER_TOKENS", 4)


def leave_plots_empty(patch: pytest.MonkeyPatch) -> None:
    """Plots' files are written, with nothing in them."""
    patch.setattr(figures, "_fill", lambda axis, panel: axis.set_axis_off())


def close_log() -> None:
    """Take the handlers of an earlier stage off the process's one logger."""
    logger = logging.getLogger(LOGGER_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def compose_config(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """The configuration that an entry point would get."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=with_hydra)


def snapshot(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder but its locks, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK_FILE
    }


def record(folder: Path, name: str) -> dict:
    """A record of a run folder."""
    return read(folder / "records" / f"{name}.json")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def refusal(action: Callable[[], object]) -> str:
    """The message of the `UserError` that `action` must raise."""
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)
