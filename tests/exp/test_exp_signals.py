"""Ctrl-C and SIGTERM, wherever they find a command. Each is a small process that sends itself the signal."""

import subprocess
import sys

import pytest
from harness import ROOT

SIGNALS = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated")}
AT_WORK = "from src.exp.stage.signals import ended_by_signals, set_way_on\nwith ended_by_signals():\n"
SEND = "import os, signal, time; os.kill(os.getpid(), signal.{number})"


def ended(tmp_path, code: str) -> tuple[int, list[str]]:
    """Exit code and lines of stderr of a process that would run for a minute."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("number", SIGNALS)
def test_at_work_it_is_an_exception_and_says_how_to_go_on(tmp_path, number) -> None:
    code = AT_WORK + f"    set_way_on(lambda: 'go on')\n    {SEND.format(number=number)}; time.sleep(60)"
    expected, word = SIGNALS[number]
    assert ended(tmp_path, code) == (expected, [f"error: {word}; go on"])


@pytest.mark.parametrize("number", SIGNALS)
def test_within_an_import_the_process_ends_at_once(tmp_path, number) -> None:
    """An exception would be swallowed by this import, as it is by that of PyTorch, or abort it."""
    swallows = f"try:\n    {SEND.format(number=number)}; time.sleep(60)\nexcept BaseException:\n    time.sleep(60)\n"
    (tmp_path / "library.py").write_text(swallows)
    expected, word = SIGNALS[number]
    line = f"error: {word}; nothing was done yet, start the same command again"
    assert ended(tmp_path, AT_WORK + "    import library") == (expected, [line])


@pytest.mark.parametrize("number", SIGNALS)
def test_an_exception_that_is_swallowed_ends_the_process_in_time(tmp_path, number) -> None:
    code = AT_WORK + f"    try:\n        {SEND.format(number=number)}; time.sleep(60)\n"
    code += "    except BaseException:\n        time.sleep(60)"
    expected, word = SIGNALS[number]
    line = f"error: {word}; nothing was done yet, start the same command again"
    assert ended(tmp_path, code) == (expected, [line])


def test_neither_a_second_signal_nor_a_callback_shows_a_stack_trace(tmp_path) -> None:
    code = AT_WORK + (
        "    import os, signal, time\n"
        "    class Handle:\n"
        "        def __del__(self): os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "    handle = Handle()\n"
        "    del handle\n"  # where Python ignores exceptions, and shows them
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)"
    )
    assert ended(tmp_path, code) == (130, ["error: interrupted; nothing was done yet, start the same command again"])


def test_a_way_on_that_cannot_be_told_does_not_keep_the_process(tmp_path) -> None:
    code = AT_WORK + f"    set_way_on(lambda: 1 / 0)\n    {SEND.format(number='SIGINT')}; time.sleep(60)"
    assert ended(tmp_path, code) == (130, ["error: interrupted; start the same command again"])


def test_a_block_that_ends_without_a_signal_leaves_the_handlers_as_they_were(tmp_path) -> None:
    code = (
        "import signal\nbefore = signal.getsignal(2), signal.getsignal(15)\n"
        + AT_WORK
        + (
            "    with ended_by_signals():\n        assert signal.getsignal(15) is not before[1]\n"
            "assert before == (signal.getsignal(2), signal.getsignal(15)) and signal.set_wakeup_fd(-1) == -1"
        )
    )
    assert ended(tmp_path, code) == (0, [])


STARTS = """
import sys
from src.exp.stage.start import start
def run(cfg):
    {send}
    try:
        time.sleep(60)
    except BaseException:
        raise ValueError("what a library makes of it")
sys.argv = ["x", "dataset=sample", "hydra.run.dir={folder}"]
start(run, "baseline")
"""


def test_an_error_that_a_signal_has_caused_is_shown_as_the_signal(tmp_path) -> None:
    folder = tmp_path / "run"
    code = STARTS.format(send=SEND.format(number="SIGTERM"), folder=folder)
    nothing = "error: terminated; nothing was written yet, start the same command again"
    assert ended(tmp_path, code) == (143, [nothing]) and not folder.exists()
    code = code.replace("import os,", f"open('{folder}/a', 'w'); import os,")
    assert ended(tmp_path, code) == (
        143,
        [f"error: terminated; the same command with hydra.run.dir={folder} goes on from here"],
    )
