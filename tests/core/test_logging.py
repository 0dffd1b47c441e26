"""Log lines, the writer that may be off, and times that add up."""

import errno
import io
import logging
import threading

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

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
    tensorboard_writer,
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


def write_points(folder, steps, value=0.0, **options):
    """A process that writes a point of `loss` and of `valid` at each step."""
    writer = tensorboard_writer(folder, LoggingConfig(), **options)
    for step in steps:
        for tag in ("loss", "valid"):
            writer.add_scalar(tag, value, step)
    writer.close()


def points(folder) -> list[tuple[str, int, float]]:
    """Every point of every event file, as TensorBoard reads them."""
    return sorted(
        (value.tag, event.step, value.simple_value)
        for file in folder.iterdir()
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
    )


def test_a_resumed_run_has_every_point_once(tmp_path):
    write_points(tmp_path, [1, 2, 3], value=0.5)
    write_points(tmp_path, [3, 4], value=0.25, keep_until=2)
    write_points(tmp_path, [5], value=0.125, keep_until=4)

    values = {1: 0.5, 2: 0.5, 3: 0.25, 4: 0.25, 5: 0.125}
    assert points(tmp_path) == [(tag, step, value) for tag in ("loss", "valid") for step, value in values.items()]
    assert len(list(tmp_path.iterdir())) == 1


def test_kept_points_keep_their_time(tmp_path):
    write_points(tmp_path, [1])
    (file,) = tmp_path.iterdir()
    before = [event.wall_time for event in LegacyEventFileLoader(str(file)).Load() if event.summary.value]
    write_points(tmp_path, [2], keep_until=1)
    (file,) = tmp_path.iterdir()
    after = [event.wall_time for event in LegacyEventFileLoader(str(file)).Load() if event.summary.value]

    assert after[:2] == before


@pytest.mark.parametrize("keep_until", [None, 0])
def test_a_fresh_run_removes_the_points_of_an_earlier_one(tmp_path, keep_until):
    (tmp_path / "notes.txt").write_text("mine")
    write_points(tmp_path, [1, 2])
    write_points(tmp_path, [1], value=0.5, keep_until=keep_until)

    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "notes.txt").unlink()
    assert points(tmp_path) == [("loss", 1, 0.5), ("valid", 1, 0.5)]


def test_a_half_written_point_is_left_behind(tmp_path):
    write_points(tmp_path, [1, 2])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    write_points(tmp_path, [3], keep_until=2)

    assert [(tag, step) for tag, step, _ in points(tmp_path)] == [
        *[("loss", step) for step in (1, 2, 3)],
        *[("valid", step) for step in (1, 3)],
    ]


def test_a_process_that_was_killed_while_it_copied_leaves_no_double(tmp_path):
    write_points(tmp_path, [1, 2])
    (file,) = tmp_path.iterdir()
    copy = file.read_bytes()
    write_points(tmp_path, [], keep_until=2)
    file.write_bytes(copy)  # as if the old file had not been deleted yet
    write_points(tmp_path, [3], keep_until=2)

    assert [(tag, step) for tag, step, _ in points(tmp_path)] == [(t, s) for t in ("loss", "valid") for s in (1, 2, 3)]


def test_progress_bar_is_off_where_nobody_watches(tmp_path, monkeypatch):
    class Terminal:
        is_terminal = True

    assert progress_bar().disable  # under pytest stderr is no terminal
    monkeypatch.setattr(run_logging._console, "_force_terminal", True)
    assert not progress_bar().disable
    start_logging(LoggingConfig(progress=False))
    assert progress_bar().disable


def test_points_of_a_test_are_made_again_by_a_resumed_run(tmp_path):
    """A run that was killed after its test, before it was complete, tests once more."""
    for value in (0.25, 0.5):
        writer = tensorboard_writer(tmp_path, LoggingConfig(), keep_until=9)
        writer.add_scalar("test/ndcg@10", value, 3)
        writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("test/ndcg@10")] == [(3, 0.5)]


def test_a_log_that_cannot_be_written_is_an_error_that_names_it(tmp_path, capsys):
    (tmp_path / "a.log").symlink_to("/dev/full")
    logger = start_logging(LoggingConfig())
    with pytest.raises(UserError, match=r"a.log: cannot be written \(No space left on device\); files written before"):
        logger.info("first")
        open_log(tmp_path / "a.log")
        logger.info("second")
    logger.info("third")  # the log is given up
    assert "Traceback" not in capsys.readouterr().err


def test_points_that_cannot_be_written_are_an_error_that_names_the_folder(tmp_path, capsys, monkeypatch):
    """TensorBoard writes them in a thread of its own."""

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # pytest has one of its own
    writer = tensorboard_writer(tmp_path / "tb", LoggingConfig())
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    with pytest.raises(UserError, match=r"tb: cannot be written \(No space left on device\)"):
        for step in range(100):
            writer.add_scalar("loss", 1.0, step)
        writer.flush()
    assert "Traceback" not in capsys.readouterr().err


def test_damaged_times_begin_anew(tmp_path, clock):
    """They are for people; a training does not end for them."""
    for damage in ("", "[", "[1]", '{"train": "long"}', '{"train": {}}', "NaN"):
        (tmp_path / "time.json").write_text(damage)
        record_times_in(tmp_path / "time.json")
        with time_block("train"):
            clock[0] += 2
        assert read_json(tmp_path / "time.json") == {"train": 2.0}
