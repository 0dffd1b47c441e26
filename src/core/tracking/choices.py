"""The trackers that there are."""

from src.core.tracking.base import TrackingConfig
from src.core.tracking.csv_points import CsvConfig
from src.core.tracking.mlflow_run import MlflowConfig
from src.core.tracking.tensorboard_events import TensorBoardConfig
from src.core.tracking.wandb_run import WandbConfig

SCHEMAS: dict[str, type[TrackingConfig]] = {  # by `logging.tracker`
    "tensorboard": TensorBoardConfig,
    "csv": CsvConfig,
    "wandb": WandbConfig,
    "mlflow": MlflowConfig,
    "none": TrackingConfig,
}
