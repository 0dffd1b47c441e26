"""TensorBoard: every point once, whatever process wrote it, and the settings beside what they led to."""

import errno
import threading

import pytest
from google.protobuf.json_format import MessageToDict
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from told import a_run, tell

from src.core.errors import UserError
from src.core.tracking.base import TrackingConfig, tracking
from src.core.tracking.tensorboard_events import TensorBoardConfig


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tb" / "baseline"


def events(folder):
    return [event for file in sorted(folder.iterdir()) for event in LegacyEventFileLoader(str(file)).Load()]


def points(folder) -> list[tuple[str, int, float]]:
    """Every point of every event file, as TensorBoard reads them."""
    values = [(value, event.step) for event in events(folder) for value in event.summary.value]
    return sorted((v.tag, step, v.simple_value) for v, step in values if v.HasField("simple_value"))


def both(values: dict[int, float]) -> list[tuple[str, int, float]]:
    return [(tag, step, value) for tag in ("loss", "valid/ndcg@10") for step, value in values.items()]


def test_no_tracker_writes_nothing(tmp_path):
    tell(TrackingConfig(), tmp_path / "run", [1])
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_has_every_point_once(tmp_path, folder):
    tell(TensorBoardConfig(), tmp_path, [1, 2, 3], value=0.5)
    tell(TensorBoardConfig(), tmp_path, [3, 4], value=0.25, keep_until=2)
    tell(TensorBoardConfig(), tmp_path, [5], value=0.125, keep_until=4)

    assert points(folder) == both({1: 0.5, 2: 0.5, 3: 0.25, 4: 0.25, 5: 0.125})
    assert len(list(folder.iterdir())) == 1
    texts = [
        v.tag for event in events(folder) for v in event.summary.value if "text" in v.metadata.plugin_data.plugin_name
    ]
    assert texts == ["configuration/text_summary"]


def test_kept_points_keep_their_time(tmp_path, folder):
    def times() -> list[float]:
        return [e.wall_time for e in events(folder) if any(v.HasField("simple_value") for v in e.summary.value)]

    tell(TensorBoardConfig(), tmp_path, [1])
    before = times()
    tell(TensorBoardConfig(), tmp_path, [2], keep_until=1)
    assert times()[:2] == before


@pytest.mark.parametrize("keep_until", [None, 0])
def test_a_fresh_run_removes_the_points_of_an_earlier_one(tmp_path, folder, keep_until):
    tell(TensorBoardConfig(), tmp_path, [1, 2])
    (folder / "notes.txt").write_text("mine")
    tell(TensorBoardConfig(), tmp_path, [1], value=0.5, keep_until=keep_until)

    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    assert points(folder) == both({1: 0.5})


def test_a_half_written_point_is_left_behind(tmp_path, folder):
    tell(TensorBoardConfig(), tmp_path, [1, 2])
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    tell(TensorBoardConfig(), tmp_path, [3], keep_until=2)

    assert [(tag, step) for tag, step, _ in points(folder)] == [
        *[("loss", step) for step in (1, 2, 3)],
        *[("valid/ndcg@10", step) for step in (1, 3)],
    ]


def test_a_process_that_was_killed_while_it_copied_leaves_no_double(tmp_path, folder):
    tell(TensorBoardConfig(), tmp_path, [1, 2])
    (file,) = folder.iterdir()
    copy = file.read_bytes()
    tell(TensorBoardConfig(), tmp_path, [], keep_until=2)
    file.write_bytes(copy)  # as if the old file had not been deleted yet
    tell(TensorBoardConfig(), tmp_path, [3], keep_until=2)

    assert points(folder) == both({1: 0.0, 2: 0.0, 3: 0.0})


def test_points_of_a_test_are_made_again_by_a_resumed_run(tmp_path, folder):
    """A run that was killed after its test, before it was complete, tests once more."""
    for value in (0.25, 0.5):
        tell(TensorBoardConfig(), tmp_path, [], keep_until=9, final=value)
    assert points(folder) == [("test/ndcg@10", 2, 0.5)]


def test_settings_stand_beside_what_they_led_to(tmp_path, folder):
    tell(TensorBoardConfig(), tmp_path, [1], final=0.5)
    told = {value.tag: value.metadata.plugin_data for event in events(folder) for value in event.summary.value}
    content = HParamsPluginData.FromString(told["_hparams_/session_start_info"].content)
    assert MessageToDict(content)["sessionStartInfo"]["hparams"] == {
        "student.lr": 0.5,
        "student.loss": "ce",
        "metrics.ks": "[1, 5]",
        "distill.embeddings_file": "None",
    }
    assert {"configuration/text_summary", "README.md/text_summary"} <= told.keys()


def test_points_that_cannot_be_written_are_an_error_that_names_the_folder(tmp_path, capsys, monkeypatch):
    """TensorBoard writes them in a thread of its own."""

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # pytest has one of its own
    told = r"tb.baseline: cannot be written \(No space left on device\)"
    with pytest.raises(UserError, match=told), tracking(TensorBoardConfig(), a_run(tmp_path)) as tracker:
        monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
        for step in range(100):
            tracker.add_scalar("loss", 1.0, step)
        tracker.flush()
    assert "Traceback" not in capsys.readouterr().err
