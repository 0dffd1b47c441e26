"""SASRec of RecTools on a log: `python with_rectools.py <folder>`; see `common.py`."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import TOP_K, Clock, read, report
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class Watch(Callback):
    """Stops the clock while an epoch's lists are made, and the training when its time is over."""

    def __init__(self, clock: Clock, look: Callable[[int], None]) -> None:
        self.clock, self.look = clock, look

    def __deepcopy__(self, memo: dict) -> "Watch":
        return self  # RecTools trains with a copy of the trainer

    def on_train_epoch_start(self, trainer: Trainer, module: torch.nn.Module) -> None:
        self.clock.start()

    def on_train_epoch_end(self, trainer: Trainer, module: torch.nn.Module) -> None:
        self.clock.stop()
        self.look(trainer.current_epoch + 1)
        trainer.should_stop = self.clock.is_over


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    settings, log = read(folder)
    seed_everything(settings["seed"])
    frame = pd.DataFrame({Columns.User: log["user"], Columns.Item: log["item"], Columns.Weight: 1.0})
    frame[Columns.Datetime] = pd.to_datetime(np.arange(len(frame)), unit="s")
    users = np.unique(log["user"])
    before = {part: Dataset.construct(frame[log["part"] < part]) for part in (1, 2)}
    clock = Clock(settings["seconds"], settings["clock"])

    def lists(part: int) -> np.ndarray:
        found = model.recommend(users, before[part], k=TOP_K, filter_viewed=True, on_unsupported_targets="ignore")
        result = np.full((len(users), TOP_K), -1)
        result[np.searchsorted(users, found[Columns.User]), found[Columns.Rank] - 1] = found[Columns.Item]
        return result

    def look(epoch: int) -> None:
        was_training = model.lightning_model.training
        report(folder, epoch, clock, lists)
        model.lightning_model.train(was_training)

    def make_trainer() -> Trainer:
        return Trainer(
            max_epochs=10_000,
            accelerator="cpu",
            callbacks=[Watch(clock, look)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
        )

    model = SASRecModel(
        n_blocks=settings["num_blocks"],
        n_heads=settings["num_heads"],
        n_factors=settings["width"],
        dropout_rate=settings["dropout"],
        session_max_len=settings["window"],
        lr=settings["lr"],
        batch_size=settings["batch_users"],
        loss="softmax",
        get_trainer_func=make_trainer,
        recommend_torch_device="cpu",
    )
    model.is_fitted = True  # asked for lists in the middle of its training
    model.fit(before[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
