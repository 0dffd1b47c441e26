"""Kills the quickstart's stages at random moments, lets each go on, compares what they end with; prints one JSON line.

    python -m benchmarks.crash --kills 105 --folder <an empty folder>

Each stage (teacher, baseline, distillation, evaluation, study; the tests' smallest settings) is run undisturbed first.
Then, again and again from the same start: begun, ended by KILL, TERM or INT at a random moment, begun again, and so on,
at last without a signal. Every file it ends with must be equal: weights, embeddings, rankings, confidences, metrics,
TensorBoard points and tables byte for byte, records but for times and process numbers, pages but for their numbers,
which the tables have. No file more, none less. TERM and INT must end it with code 143 or 130 and without a stack trace.
What is not so is a line of `problems`, and exit code 1. Plots are left empty, which saves most of an evaluation's time.
"""

import argparse
import hashlib
import json
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "exp"))
from harness import ROOT, SLOW_TO_IMPORT, TINY_STUDENT, TINY_TEACHER, leave_plots_empty, make_data_dir, places

from src.core.files import LOCK_FILE

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SMALLER = [
    "dataset.max_train_rows=300",
    "teacher.max_train_rows=32",
    "teacher.max_eval_rows=8",
    "teacher.max_valid_rows=8",
]
NAMES = ["teacher", "baseline", "distill", "eval", "study"]
MOST_KILLS = 8  # of a stage until it is let through
_NUMBER = re.compile(r"\d+(\.\d+)?")
_FILL = re.compile(r"[ -]+")  # a table's columns are as wide as their numbers
_TIMED = ("ms", "tokens_per_s")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command and its overrides."""

    name: str
    module: str
    overrides: list[str]


@dataclass(kw_only=True)
class Found:
    """What was seen; everything but `kills`, `rounds` and `slowest` has to stay empty."""

    kills: dict[str, Counter[str]] = field(default_factory=dict)
    rounds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds from TERM or INT to the end
    problems: list[str] = field(default_factory=list)

    def note(self, stage: Stage, problem: str, printed: Path) -> None:
        self.problems.append(f"{stage.name}: {problem}: {printed.read_text()[-500:]}")


def stages(root: Path) -> list[Stage]:
    run = root / "result" / "run"
    common = [*TINY_STUDENT, *TINY_TEACHER, *SMALLER, *places(root / "data", root / "result", run)]
    study = [*places(root / "data", root / "result", root / "result" / "study"), f"study.run_dir={run}"]
    variants = "study.variants={distilled: [], random_teaches: ['distill.teacher=random']}"
    return [
        Stage(name="teacher", module="run_teacher", overrides=[*common, "teacher.save_steps=1"]),
        Stage(name="baseline", module="run_student_baseline", overrides=common),
        Stage(name="distill", module="run_distill", overrides=common),
        Stage(name="eval", module="run_eval_all", overrides=[*common, f"eval.run_dir={run}"]),
        Stage(name="study", module="run_study", overrides=[*study, "study.seeds=[42]", variants]),
    ]


# --- processes ----------------------------------------------------------------------------------------------


def start(stage: Stage, printed: Path) -> int:
    """The stage as a process of its own, which prints to a file; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.chdir(ROOT)
        sys.modules.pop(f"src.exp.{stage.module}", None)  # runpy warns where it is there
        sys.argv = [stage.module, *stage.overrides]
        runpy.run_module(f"src.exp.{stage.module}", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float = float("inf")) -> int | None:
    """The exit code, negative for a signal; None where it still runs after so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def finish(stage: Stage, printed: Path, found: Found) -> float:
    """Run the stage to its end; the seconds that took."""
    begin = time.monotonic()
    if code := wait(start(stage, printed)):
        found.note(stage, f"code {code} without a signal", printed)
    return time.monotonic() - begin


# --- what a stage leaves ------------------------------------------------------------------------------------


def contents(root: Path) -> dict[str, str]:
    """What every file below a folder says, by relative path; the name of a TensorBoard file has a time in it."""
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != LOCK_FILE:
            name = re.sub(r"tfevents\..*", "tfevents", str(path.relative_to(root)))
            found.setdefault(name, []).append(_content(path))
    return {name: " ".join(values) for name, values in found.items()}


def _content(path: Path) -> str:
    if "tfevents" in path.name:
        return _points(path)
    if path.suffix == ".log":  # tells what happened
        return ""
    if path.name == "time.json":
        return str(sorted(json.loads(path.read_text())))
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(path.read_text())))
    if path.suffix in (".md", ".html"):
        return _FILL.sub(" ", _NUMBER.sub("#", path.read_text()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _points(path: Path) -> str:
    points = [
        (value.tag, event.step, value.simple_value)
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
        if not value.tag.endswith(_TIMED)
    ]
    return str(sorted(points))


def _without_times(value: Any) -> Any:
    """A record or figures without what differs from run to run, hashes of pages with times in them included."""
    if not isinstance(value, dict):
        return value
    kept = {key: one for key, one in value.items() if key not in ("owner", "completed") and "ms" not in key}
    return {key: _without_times(one) for key, one in kept.items() if not key.endswith((".md", ".html"))}


# --- rounds -------------------------------------------------------------------------------------------------


def disturbed(stage: Stage, seconds: float, kills: int, found: Found, *, draw: random.Random, printed: Path) -> None:
    """Kill the stage up to `kills` times, then let it end."""
    done = 0
    while done < kills:
        print(stage.name, found.kills[stage.name].total(), file=sys.stderr)
        number = draw.choice(SIGNALS)
        pid = start(stage, printed)
        if wait(pid, draw.uniform(0, seconds)) is not None:  # it was quicker
            break
        os.kill(pid, number)
        begin = time.monotonic()
        code = wait(pid)
        done += 1
        found.kills[stage.name][number.name] += 1
        expected = (-number if number == signal.SIGKILL else 128 + number, 0)  # 0: it had ended already
        if code not in expected:
            found.note(stage, f"code {code} after {number.name}", printed)
        if number != signal.SIGKILL:
            found.slowest = max(found.slowest, time.monotonic() - begin)
    finish(stage, printed, found)
    if "Traceback" in printed.read_text():
        found.note(stage, "a stack trace", printed)


def differences(expected: dict[str, str], now: dict[str, str]) -> list[str]:
    names = sorted(expected.keys() | now.keys())
    words: Callable[[str], str] = lambda name: (  # noqa: E731
        "differs" if name in expected and name in now else "is missing" if name in expected else "is left over"
    )
    return [f"{name} {words(name)}" for name in names if expected.get(name) != now.get(name)]


def crash(root: Path, names: list[str], kills: int, seed: int) -> Found:
    """The named stages, each from what the undisturbed ones before it have left; quick ones are killed more often."""
    found, draw, work, printed = Found(), random.Random(seed), root / "work", root / "printed"
    make_data_dir(work / "data")
    chain = [stage for stage in stages(work) if stage.name in names]
    seconds = []
    for position, stage in enumerate(chain):
        shutil.copytree(work, root / str(position))
        seconds.append(finish(stage, printed, found))
        if found.problems:  # of the program or of the settings; no signal was sent yet
            return found
    shutil.move(work, root / str(len(chain)))
    share = sum(1 / s for s in seconds)
    for position, stage in enumerate(chain):
        found.kills[stage.name], wanted = Counter(), max(1, round(kills / seconds[position] / share))
        expected = contents(root / str(position + 1))
        while (left := wanted - found.kills[stage.name].total()) > 0:
            shutil.copytree(root / str(position), work)
            printed.unlink()
            number = min(left, draw.randint(1, MOST_KILLS))
            disturbed(stage, seconds[position], number, found, draw=draw, printed=printed)
            found.problems += [f"{stage.name}: {words}" for words in differences(expected, contents(work))]
            found.rounds[stage.name] += 1
            shutil.rmtree(work)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--stages", nargs="+", choices=NAMES, default=NAMES, help="each needs those before it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty folder; left out: a temporary one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in SLOW_TO_IMPORT:  # once: the stages are forks of this process
        import_module(name)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, pytest.MonkeyPatch.context() as patch:
        leave_plots_empty(patch)
        found = crash(Path(folder), args.stages, args.kills, args.seed)
    total = sum((counts for counts in found.kills.values()), Counter())
    print(
        json.dumps(
            {
                "kills": total.total(),
                **total,
                "by_stage": {name: counts.total() for name, counts in found.kills.items()},
                "rounds": found.rounds.total(),
                "problems": found.problems,
                "slowest_end_s": round(found.slowest, 2),
                "seed": args.seed,
            }
        )
    )
    if found.problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
