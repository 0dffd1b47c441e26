"""Log lines, the writer that may be off, and times that add up."""

import io
import logging

import pytest
from rich.console import Console

from src.core import logging as run_logging
from src.core.errors import UserError
from src.core.files import read_json, write_json
from src.core.logging import LoggingConfig, init_logger, progress_bar, tensorboard_writer, time_block


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test winds: `clock[0] += seconds`."""
    now = [100.0]
    monkeypatch.setattr(run_logging.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture(autouse=True)
def _clean_logger(monkeypatch):
    monkeypatch.setattr(run_logging, "_show_progress", True)
    yield
    logger = logging.getLogger(run_logging.LOGGER_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True


def test_times_merge_and_add_up(tmp_path, clock):
    file = tmp_path / "metrics" / "time.json"

    with time_block("train", file):
        clock[0] += 1.5
    with time_block("export", file):
        clock[0] += 4.0
    with time_block("train", file):  # a resumed stage
        clock[0] += 2.25

    assert read_json(file) == {"train": 1.5 + 2.25, "export": 4.0}


def test_time_counts_when_the_block_fails(tmp_path, clock):
    file = tmp_path / "time.json"
    write_json(file, {"train": 1.0, "other": 7.0})

    with pytest.raises(ZeroDivisionError), time_block("train", file):
        clock[0] += 2.0
        _ = 1 / 0

    assert read_json(file) == {"train": 1.0 + 2.0, "other": 7.0}


def test_time_so_far_outlives_a_kill_and_is_counted_once(tmp_path, clock):
    file = tmp_path / "time.json"
    with time_block("train", file) as add_time:
        clock[0] += 2.0
        add_time()
        assert read_json(file) == {"train": 2.0}  # what a kill would leave
        clock[0] += 3.0
    assert read_json(file) == {"train": 5.0}


def test_logger_appends_to_its_file(tmp_path):
    for text in ("first", "second"):
        logger = init_logger(tmp_path / "logs" / "stage.log", LoggingConfig())
        logger.info(text)
        logger.debug("not at this level")

    lines = (tmp_path / "logs" / "stage.log").read_text().splitlines()

    assert len(lines) == 2  # a second start of the logger repeats no line
    assert lines[0].endswith("INFO    first")
    assert lines[1].endswith("INFO    second")


def test_no_line_carries_what_a_terminal_obeys(tmp_path, capsys):
    logger = init_logger(tmp_path / "a.log", LoggingConfig())
    logger.warning("%s", "a\x1b[31m\nb")
    try:
        raise ValueError("c\x1b[31m\u202e")
    except ValueError:
        logger.exception("d")

    for text in ((tmp_path / "a.log").read_text(), capsys.readouterr().err):
        assert r"a\x1b[31m\nb" in text and r"ValueError: c\x1b[31m\u202e" in text
        assert "\x1b" not in text and "\u202e" not in text
        assert text.count("WARNING") == 1 and "Traceback" in text.splitlines()[2]


def test_nor_on_a_terminal(tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr(run_logging, "_console", console)
    init_logger(tmp_path / "a.log", LoggingConfig()).warning("%s", "a\x1b[31m[bold]b")
    assert r"a\x1b[31m[bold]b" in console.file.getvalue() and "\x1b" not in console.file.getvalue()


def test_logger_changes_its_file(tmp_path):
    init_logger(tmp_path / "one.log", LoggingConfig()).info("one")
    init_logger(tmp_path / "two.log", LoggingConfig(level="WARNING")).warning("two")
    logging.getLogger(run_logging.LOGGER_NAME).info("too quiet")

    assert "two" not in (tmp_path / "one.log").read_text()
    assert (tmp_path / "two.log").read_text().rstrip().endswith("WARNING two")


def test_unknown_level():
    with pytest.raises(UserError, match="logging.level='LOUD': must be one of DEBUG, INFO, WARNING, ERROR"):
        LoggingConfig(level="LOUD")


def test_tensorboard_off_writes_nothing(tmp_path):
    writer = tensorboard_writer(tmp_path / "tb", LoggingConfig(tensorboard=False))
    writer.add_scalar("loss", 1.0, 1)
    writer.close()

    assert not (tmp_path / "tb").exists()


def test_tensorboard_on_writes_an_event_file(tmp_path):
    writer = tensorboard_writer(tmp_path / "tb", LoggingConfig())
    writer.add_scalar("loss", 1.0, 1)
    writer.close()

    assert [path.name for path in (tmp_path / "tb").iterdir() if "tfevents" in path.name]


def test_progress_bar_is_off_where_nobody_watches(tmp_path, monkeypatch):
    class Terminal:
        is_terminal = True

    assert progress_bar().disable  # under pytest stderr is no terminal
    monkeypatch.setattr(run_logging._console, "_force_terminal", True)
    assert not progress_bar().disable
    init_logger(tmp_path / "a.log", LoggingConfig(progress=False))
    assert progress_bar().disable
