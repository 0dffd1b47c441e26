"""Log lines, and times that add up."""

import io
import logging
import re

import pytest
from rich.console import Console

from src.core import logging as run_logging
from src.core.errors import UserError
from src.core.files import read_json, write_json
from src.core.logging import (
    LoggingConfig,
    forget_times,
    open_log,
    progress_bar,
    record_times_in,
    start_logging,
    time_block,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test winds: `clock[0] += seconds`."""
    now = [100.0]
    monkeypatch.setattr(run_logging.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture(autouse=True)
def _clean_logger(monkeypatch):
    monkeypatch.setattr(run_logging, "_show_progress", True)
    monkeypatch.setattr(run_logging, "_time_file", None)
    yield
    logger = logging.getLogger(run_logging.LOGGER_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True


def test_times_merge_and_add_up(tmp_path, clock):
    file = tmp_path / "metrics" / "time.json"
    record_times_in(file)

    with time_block("train"):
        clock[0] += 1.5
    with time_block("export"):
        clock[0] += 4.0
    with time_block("train"):  # a resumed stage
        clock[0] += 2.25

    assert read_json(file) == {"train": 1.5 + 2.25, "export": 4.0}


def test_time_counts_when_the_block_fails(tmp_path, clock):
    file = tmp_path / "time.json"
    write_json(file, {"train": 1.0, "other": 7.0})
    record_times_in(file)

    with pytest.raises(ZeroDivisionError), time_block("train"):
        clock[0] += 2.0
        _ = 1 / 0

    assert read_json(file) == {"train": 1.0 + 2.0, "other": 7.0}


def test_time_so_far_outlives_a_kill_and_is_counted_once(tmp_path, clock):
    file = tmp_path / "time.json"
    record_times_in(file)
    with time_block("train") as add_time:
        clock[0] += 2.0
        add_time()
        assert read_json(file) == {"train": 2.0}  # what a kill would leave
        clock[0] += 3.0
    assert read_json(file) == {"train": 5.0}


def test_a_block_keeps_to_the_file_that_it_began_with(tmp_path, clock):
    record_times_in(tmp_path / "outer.json")
    with time_block("sweep"):
        record_times_in(tmp_path / "inner.json")
        with time_block("train"):
            clock[0] += 2.0

    assert read_json(tmp_path / "outer.json") == {"sweep": 2.0}
    assert read_json(tmp_path / "inner.json") == {"train": 2.0}


def test_forgotten_times_count_no_more(tmp_path, clock):
    write_json(tmp_path / "time.json", {"train": 1.0, "export": 2.0, "other": 3.0})
    record_times_in(tmp_path / "time.json")

    forget_times("train", "export", "never measured")
    with time_block("train"):
        clock[0] += 5.0

    assert read_json(tmp_path / "time.json") == {"other": 3.0, "train": 5.0}


def test_without_a_file_nothing_is_kept(tmp_path, clock, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with time_block("train") as add_time:
        add_time()
    forget_times("train")

    assert list(tmp_path.iterdir()) == []


def test_logger_appends_to_its_file(tmp_path):
    for text in ("first", "second"):
        logger = start_logging(LoggingConfig())
        logger.info(text)
        open_log(tmp_path / "logs" / "stage.log")
        logger.debug("not at this level")

    lines = (tmp_path / "logs" / "stage.log").read_text().splitlines()

    assert len(lines) == 2  # a second start of the logger repeats no line
    assert lines[0].endswith("INFO    first")
    assert lines[1].endswith("INFO    second")


def test_no_line_carries_what_a_terminal_obeys(tmp_path, capsys):
    logger = start_logging(LoggingConfig())
    open_log(tmp_path / "a.log")
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
    start_logging(LoggingConfig()).warning("%s", "a\x1b[31m[bold]b")
    assert r"a\x1b[31m[bold]b" in console.file.getvalue() and "\x1b" not in console.file.getvalue()


def test_logger_changes_its_file(tmp_path):
    start_logging(LoggingConfig()).info("one")
    open_log(tmp_path / "one.log")
    logger = start_logging(LoggingConfig(level="WARNING"))
    open_log(tmp_path / "two.log")
    logger.warning("two")
    logging.getLogger(run_logging.LOGGER_NAME).info("too quiet")

    assert "two" not in (tmp_path / "one.log").read_text()
    assert (tmp_path / "two.log").read_text().rstrip().endswith("WARNING two")


def test_what_is_said_before_the_file_is_opened_stands_in_it_too(tmp_path):
    logger = start_logging(LoggingConfig())
    logger.info("before")
    open_log(tmp_path / "a.log")
    logger.info("after")
    start_logging(LoggingConfig()).info("of a stage that is skipped")

    assert [line.split()[-1] for line in (tmp_path / "a.log").read_text().splitlines()] == ["before", "after"]


def test_unknown_level():
    with pytest.raises(UserError, match="logging.level='LOUD': must be one of DEBUG, INFO, WARNING, ERROR"):
        LoggingConfig(level="LOUD")


def test_progress_bar_is_off_where_nobody_watches(tmp_path, monkeypatch):
    class Terminal:
        is_terminal = True

    assert progress_bar().disable  # under pytest stderr is no terminal
    monkeypatch.setattr(run_logging._console, "_force_terminal", True)
    assert not progress_bar().disable
    start_logging(LoggingConfig(progress=False))
    assert progress_bar().disable


def test_a_bar_of_a_distillation_fits_80_columns(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(run_logging, "_console", Console(file=screen, force_terminal=True, color_system=None, width=80))
    info = "15.415: ce 14.2 ranking 12.4, valid 0.0400"
    with progress_bar() as bar:
        bar.add_task("training", total=9876, completed=1234, info=info)
    line = max(screen.getvalue().replace("\r", "\n").splitlines(), key=len)
    assert "1234/9876" in line and info in line
    assert len(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)) <= 80


def test_a_log_that_cannot_be_written_is_an_error_that_names_it(tmp_path, capsys):
    (tmp_path / "a.log").symlink_to("/dev/full")
    logger = start_logging(LoggingConfig())
    with pytest.raises(UserError, match=r"a.log: cannot be written \(No space left on device\); files written before"):
        logger.info("first")
        open_log(tmp_path / "a.log")
        logger.info("second")
    logger.info("third")  # the log is given up
    assert "Traceback" not in capsys.readouterr().err


def test_damaged_times_begin_anew(tmp_path, clock):
    """They are for people; a training does not end for them."""
    for damage in ("", "[", "[1]", '{"train": "long"}', '{"train": {}}', "NaN"):
        (tmp_path / "time.json").write_text(damage)
        record_times_in(tmp_path / "time.json")
        with time_block("train"):
            clock[0] += 2
        assert read_json(tmp_path / "time.json") == {"train": 2.0}
