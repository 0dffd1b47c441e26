"""MLflow: a stand-in of a few lines notes what it is told; the package itself, with a file, where it is installed."""

import json
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
from told import CONFIG, a_run, tell

from src.core.errors import UserError
from src.core.tracking.base import tracking
from src.core.tracking.mlflow_run import MlflowConfig

SERVER = MlflowConfig(uri="http://tracker", experiment="e")


class StandIn:
    """MLflow's server, as far as it is used: runs with params, points, files and a status."""

    def __init__(self):
        self.experiments, self.runs, self.gone = {}, {}, False

    def client(self, tracking_uri):
        if self.gone:
            raise ConnectionError("refused")
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name):
        found = self.experiments.get(name)
        return None if found is None else SimpleNamespace(experiment_id=found)

    def create_experiment(self, name, artifact_location):
        return self.experiments.setdefault(name, "7")

    def create_run(self, experiment, run_name, tags):
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = SimpleNamespace(name=run_name, tags=tags, params={}, points=[], files={}, status="RUNNING")
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id, status):
        self.runs[run_id].status = status

    def log_batch(self, run_id, params):
        self.runs[run_id].params |= dict(params)

    def log_text(self, run_id, text, name):
        self.runs[run_id].files[name] = text

    def log_metric(self, run_id, key, value, step):
        if self.gone:
            raise ConnectionError("refused")
        self.runs[run_id].points.append((key, step, value))

    def log_artifact(self, run_id, path):
        self.runs[run_id].files[path.rsplit("/", 1)[1]] = None

    def set_terminated(self, run_id, status):
        self.runs[run_id].status = status


@pytest.fixture
def stand_in(monkeypatch):
    server = StandIn()
    modules = {
        "mlflow": {},
        "mlflow.tracking": {"MlflowClient": server.client},
        "mlflow.entities": {"Param": lambda key, value: (key, value)},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    return server


def losses(run) -> list[int]:
    return [step for key, step, _ in run.points if key == "loss"]


def test_what_a_run_is_told(tmp_path, stand_in):
    tell(SERVER, tmp_path, [1], value=0.5, final=0.25)

    run = stand_in.runs["run0"]
    assert run.points == [("loss", 1, 0.5), ("valid/ndcg_at_10", 1, 0.5), ("test/ndcg_at_10", 2, 0.25)]
    assert run.params == {
        "student.lr": "0.5",
        "student.loss": "ce",
        "metrics.ks": "[1, 5]",
        "distill.embeddings_file": "None",
    }
    assert run.files == {"config.yaml": CONFIG, "README.md": None}
    assert run.name.endswith(f"{tmp_path.name}/baseline") and run.tags["curves"] == "baseline"
    assert (stand_in.uri, stand_in.experiments, run.status) == ("http://tracker", {"e": "7"}, "FINISHED")


def test_a_resumed_training_goes_on_in_the_same_run_and_tells_nothing_twice(tmp_path, stand_in):
    tell(SERVER, tmp_path, [1, 2, 3], final=0.5)
    tell(SERVER, tmp_path, [3, 4], keep_until=2, final=0.5)
    tell(SERVER, tmp_path, [1])

    assert [losses(run) for run in stand_in.runs.values()] == [[1, 2, 3, 4], [1]]
    assert stand_in.runs["run0"].points.count(("test/ndcg_at_10", 2, 0.5)) == 1


def test_a_training_that_fails_is_a_run_that_failed(tmp_path, stand_in):
    with pytest.raises(ZeroDivisionError), tracking(SERVER, a_run(tmp_path)):
        _ = 1 / 0
    assert stand_in.runs["run0"].status == "FAILED"


def test_a_server_that_goes_costs_the_curves_and_not_the_training(tmp_path, stand_in, caplog, monkeypatch):
    monkeypatch.setattr("src.core.tracking.mlflow_run.LOGGER_NAME", "tests")
    with tracking(SERVER, a_run(tmp_path)) as tracker:
        tracker.add_scalar("loss", 0.5, 1)
        stand_in.gone = True
        tracker.add_scalar("loss", 0.25, 2)
        tracker.add_scalar("loss", 0.125, 3)
    assert losses(stand_in.runs["run0"]) == [1]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and warnings[0].startswith("mlflow: not reached any more (ConnectionError: refused)")
    assert "3,loss,0.125," in (tmp_path / "tracking" / "mlflow" / "baseline" / "points.csv").read_text()


def test_a_server_that_is_not_there(stand_in):
    stand_in.gone = True
    with pytest.raises(UserError, match=r"logging.uri=http://tracker: MLflow cannot be used there \(ConnectionError"):
        SERVER.require()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(
        UserError, match="logging=mlflow: the package is not installed .*; poetry install -E mlflow, or"
    ):
        SERVER.require()


def test_a_file_is_a_database_with_its_files_beside_it(tmp_path, stand_in):
    MlflowConfig(uri=str(tmp_path / "r" / "mlflow.db")).require()
    assert stand_in.uri == f"sqlite:///{tmp_path / 'r' / 'mlflow.db'}"


@pytest.mark.parametrize("key", ["experiment", "uri"])
def test_values_out_of_range(key):
    with pytest.raises(UserError, match=f"logging.{key}=' '"):
        MlflowConfig(**{key: " "})


def test_the_package_itself_with_a_file(tmp_path):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    settings = MlflowConfig(uri=str(tmp_path / "mlflow.db"), experiment="e")
    settings.require()
    tell(settings, tmp_path, [1, 2], value=0.5, final=0.25)
    tell(settings, tmp_path, [2, 3], value=0.5, keep_until=1, final=0.25)

    client, _ = settings.store()
    run_id = json.loads((tmp_path / "tracking" / "mlflow" / "baseline" / "run.json").read_text())["id"]
    told = client.get_run(run_id)
    assert [point.step for point in client.get_metric_history(run_id, "valid/ndcg_at_10")] == [1, 2, 3]
    assert [point.value for point in client.get_metric_history(run_id, "test/ndcg_at_10")] == [0.25]
    assert told.data.params["student.lr"] == "0.5" and told.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run_id)} == {"README.md", "config.yaml"}
