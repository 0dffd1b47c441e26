"""MLflow: a run for each training, in a server's or a file's experiment; the extra `mlflow`."""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from src.core.artefacts import locked
from src.core.errors import UserError, check
from src.core.logging import LOGGER_NAME
from src.core.paths import project_path
from src.core.tracking.base import TrackedRun, Tracker, TrackingConfig
from src.core.tracking.remote import Journal, brief, require_package

_NOT_IN_NAMES = re.compile(r"[^\w/ .-]")
_PARAMS_AT_ONCE, _LONGEST_PARAM = 100, 500


@dataclass(frozen=True, kw_only=True)
class MlflowConfig(TrackingConfig):
    """`logging=mlflow`.

    Attributes:
        experiment: its name in MLflow; uri: of a tracking server, or a database file, made where there is none.
    """

    tracker: str = "mlflow"
    experiment: str = "anyo_ilora_dllm2rec"
    uri: str = "result/mlflow.db"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.experiment.strip() != "", "logging.experiment", self.experiment, "a name")
        check(self.uri.strip() != "", "logging.uri", self.uri, "the file of a database, or a server's http(s)://...")

    def require(self) -> None:
        require_package(_library, "mlflow")
        self.store()

    def open(self, run: TrackedRun) -> Tracker:
        return _MlflowRun(self, run)

    def store(self) -> tuple[Any, str]:
        """MLflow's client and the experiment's id.

        Raises:
            UserError: no such server, or one that refuses us.
        """
        # MLflow tries seven times, for minutes: longer than one looks at a command that has just been started.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        if "://" in self.uri:
            return _refused_as_ours(lambda: self._store(self.uri, None), self.uri)
        file = project_path(self.uri)
        kept = file.with_name(f"{file.stem}_files")  # what runs are given as files; its lock is the database's, too
        with locked(kept, notify=logging.getLogger(LOGGER_NAME).info):  # a sweep's jobs would make both at once
            return _refused_as_ours(lambda: self._store(f"sqlite:///{file}", kept.as_uri()), self.uri)

    def _store(self, uri: str, files: str | None) -> tuple[Any, str]:
        client = _library()(tracking_uri=uri)
        found = client.get_experiment_by_name(self.experiment)
        return client, found.experiment_id if found else client.create_experiment(self.experiment, files)


def _library() -> Any:
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each table that it makes
    from mlflow.tracking import MlflowClient  # takes three seconds, and is an extra

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient


def _refused_as_ours(ask: Callable[[], Any], uri: str) -> Any:
    try:
        return ask()
    except UserError:
        raise
    except Exception as error:  # of MLflow, of its database, of the network
        raise UserError(
            f"logging.uri={uri}: MLflow cannot be used there ({brief(error)}); give a running server, or the "
            "file of a database"
        ) from error


class _MlflowRun:
    """A run that is lost underway (a server that is gone) costs its curves, not the training: points.csv has them."""

    def __init__(self, settings: MlflowConfig, run: TrackedRun) -> None:
        self._journal, self._logger, self._lost = Journal(run, "mlflow"), logging.getLogger(LOGGER_NAME), False
        self._client, experiment = settings.store()
        known = self._journal.run_id
        if known is not None:
            _refused_as_ours(lambda: self._client.update_run(known, status="RUNNING"), settings.uri)
        else:
            tags = {"run_folder": str(run.folder.root), "curves": run.name}
            begun = _refused_as_ours(
                lambda: self._client.create_run(experiment, run_name=run.label, tags=tags), settings.uri
            )
            self._journal.begin(begun.info.run_id)
            self._tell(lambda: self._describe(run))
        self._logger.info("mlflow: %s in %s", run.label, settings.uri)

    def _describe(self, run: TrackedRun) -> None:
        from mlflow.entities import Param

        params = [Param(_name(key), str(value)[:_LONGEST_PARAM]) for key, value in run.hparams.items()]
        for begin in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._journal.run_id, params=params[begin : begin + _PARAMS_AT_ONCE])
        if run.config:
            self._client.log_text(self._journal.run_id, run.config, "config.yaml")

    def _tell(self, tell: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            tell()
        except Exception as error:  # as above
            self._lost = True
            self._logger.warning(
                "mlflow: not reached any more (%s); the curves go on in %s", brief(error), self._journal.folder
            )

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        if self._journal.is_new(tag, scalar_value, global_step):
            run_id, name = self._journal.run_id, _name(tag)
            self._tell(lambda: self._client.log_metric(run_id, name, float(scalar_value), step=global_step))

    def flush(self) -> None:
        """The store has a point as soon as it is logged."""

    def conclude(self, metrics: Mapping[str, float], step: int) -> None:
        for tag, value in metrics.items():
            self.add_scalar(tag, value, step)

    def add_files(self, files: Sequence[Path]) -> None:
        for file in files:
            self._tell(partial(self._client.log_artifact, self._journal.run_id, str(file)))

    def close(self, *, failed: bool) -> None:
        status = "FAILED" if failed else "FINISHED"
        self._tell(lambda: self._client.set_terminated(self._journal.run_id, status))
        self._journal.close()


def _name(tag: str) -> str:
    """A name that MLflow takes: `ndcg@10` is `ndcg_at_10` there.

    >>> _name("valid/ndcg@10"), _name("distill.alpha")
    ('valid/ndcg_at_10', 'distill.alpha')
    """
    return _NOT_IN_NAMES.sub("_", tag.replace("@", "_at_"))
