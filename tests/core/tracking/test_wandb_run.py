"""Weights & Biases: a stand-in of a few lines notes what it is told; the package itself, offline, where it is there."""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
from told import HPARAMS, a_run, tell

from src.core.errors import UserError
from src.core.tracking.base import tracking
from src.core.tracking.wandb_run import WandbConfig

OFFLINE = WandbConfig(mode="offline", project="p")


class StandIn(SimpleNamespace):
    """`wandb`, as far as it is used. `told` has a list for each run that was begun."""

    class errors:
        class Error(Exception):
            pass

    class Artifact:
        def __init__(self, name, type):
            self.name, self.files = name, []

        def add_file(self, path, name):
            self.files.append(name)

    def __init__(self, logged_in=True, refuses=None):
        self.told, self.logged_in, self.refuses = [], logged_in, refuses

    def login(self, *, prompt, verify):
        assert not prompt and not verify
        return self.logged_in

    def Settings(self, **options):
        return options

    def init(self, **options):
        if self.refuses:
            raise self.errors.Error(self.refuses)
        run = SimpleNamespace(options=options, points=[], summary={}, files=[], url="https://w/r", exit_code=None)
        run.log = lambda values, step: run.points.append((step, values))
        run.log_artifact = lambda artifact: run.files.append((artifact.name, artifact.files))
        run.finish = lambda exit_code: setattr(run, "exit_code", exit_code)
        self.told.append(run)
        return run


@pytest.fixture
def stand_in(monkeypatch):
    library = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", library)
    return library


def test_what_a_run_is_told(tmp_path, stand_in):
    folder = tmp_path / "result_1"
    folder.mkdir()
    tell(OFFLINE, folder, [1, 2], value=0.5, final=0.25)

    (run,) = stand_in.told
    assert run.points == [(step, {tag: 0.5}) for step in (1, 2) for tag in ("loss", "valid/ndcg@10")]
    assert run.summary == {"test/ndcg@10": 0.25}
    assert run.options["config"] == {"student": {"lr": 0.5}, "decides": HPARAMS}
    assert run.options["group"] == f"{tmp_path.name}/result_1"
    assert (run.options["name"], run.options["job_type"]) == (f"{tmp_path.name}/result_1/baseline", "baseline")
    assert (run.options["project"], run.options["mode"], run.exit_code) == ("p", "offline", 0)
    assert run.files == [(f"{tmp_path.name}-result_1-baseline", ["README.md"])]


def test_a_resumed_training_goes_on_in_the_same_run_and_tells_nothing_twice(tmp_path, stand_in):
    """The third step was told, its state not saved: the training makes it again, with the same value."""
    tell(OFFLINE, tmp_path, [1, 2, 3])
    tell(OFFLINE, tmp_path, [3, 4], keep_until=2)
    tell(OFFLINE, tmp_path, [1])  # and again from the beginning

    first, second, third = stand_in.told
    assert first.options["id"] == second.options["id"] != third.options["id"]
    assert [[step for step, values in run.points if "loss" in values] for run in stand_in.told] == [[1, 2, 3], [4], [1]]


def test_a_run_that_cannot_be_told_any_more_is_begun_anew(tmp_path, stand_in):
    tell(OFFLINE, tmp_path, [1])
    (tmp_path / "tracking" / "wandb" / "baseline" / "run.json").write_text("[")
    tell(OFFLINE, tmp_path, [1, 2], keep_until=1)
    assert [step for step, values in stand_in.told[1].points if "loss" in values] == [1, 2]


def test_a_training_that_fails_is_a_run_that_failed(tmp_path, stand_in):
    with pytest.raises(ZeroDivisionError), tracking(OFFLINE, a_run(tmp_path)):
        _ = 1 / 0
    assert stand_in.told[0].exit_code == 1


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match="logging=wandb: the package is not installed .*; poetry install -E wandb, or"):
        OFFLINE.require()


def test_without_a_login(stand_in):
    stand_in.logged_in = False
    OFFLINE.require()
    with pytest.raises(UserError, match="logging=wandb: nobody is logged in .*; run `wandb login`, set WANDB_API_KEY"):
        WandbConfig().require()


def test_a_run_that_is_refused(tmp_path, stand_in):
    stand_in.refuses = "no such\nproject"
    with pytest.raises(UserError, match=r"no run could be begun \(Error: no such project\); check network and login"):
        tell(WandbConfig(), tmp_path, [1])


@pytest.mark.parametrize("values, message", [({"mode": "on"}, "logging.mode='on'"), ({"project": "a/b"}, "logging.p")])
def test_values_out_of_range(values, message):
    with pytest.raises(UserError, match=message):
        WandbConfig(**values)


def test_the_package_itself_offline(tmp_path, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    caplog.set_level(logging.INFO)
    tell(OFFLINE, tmp_path, [1, 2], final=0.25)
    tell(OFFLINE, tmp_path, [2, 3], keep_until=1, final=0.5)

    folder = tmp_path / "tracking" / "wandb" / "baseline"
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    run_id = json.loads((folder / "run.json").read_text())["id"]
    assert wandb.__version__ and {run.name.rsplit("-", 1)[1] for run in runs} == {run_id}
    binary = b"".join((run / f"run-{run_id}.wandb").read_bytes() for run in runs)
    assert binary.count(b"valid/ndcg@10") >= 3 and b"test/ndcg@10" in binary and b"student" in binary
