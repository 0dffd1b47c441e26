"""SASRec of RecBole on a log: `python with_recbole.py <folder>`; see `common.py`."""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from common import TOP_K, Clock, read, report
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

_BATCH = 512


def config_of(folder: Path, settings: dict) -> Config:
    return Config(
        model="SASRec",
        dataset="log",
        config_dict={
            "data_path": str(folder),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            "MAX_ITEM_LIST_LENGTH": settings["window"],
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "n_layers": settings["num_blocks"],
            "n_heads": settings["num_heads"],
            "hidden_size": settings["width"],
            "inner_size": 4 * settings["width"],  # as in its own settings: 256 for 64
            "hidden_dropout_prob": settings["dropout"],
            "attn_dropout_prob": settings["dropout"],
            "learning_rate": settings["lr"],
            "train_batch_size": settings["batch_rows"],
            "seed": settings["seed"],
            "use_gpu": False,
            "checkpoint_dir": str(folder),
            "show_progress": False,
            "state": "ERROR",
        },
    )


def write_log(folder: Path, log: dict[str, np.ndarray]) -> None:
    (folder / "log").mkdir()
    with (folder / "log" / "log.inter").open("w") as file:
        print("user_id:token\titem_id:token\ttimestamp:float", file=file)
        for time, (user, item) in enumerate(zip(log["user"], log["item"], strict=True)):
            print(user, item, time, sep="\t", file=file)


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    sys.argv = sys.argv[:1]  # which RecBole reads, too
    settings, log = read(folder)
    write_log(folder, log)
    config = config_of(folder, settings)
    init_seed(config["seed"], reproducibility=True)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    own = {int(token): number for number, token in enumerate(dataset.field2id_token["item_id"]) if number}
    ours = np.array([-1, *own])  # our number of each of theirs; 0 is padding
    users, start = np.unique(log["user"], return_index=True)
    items = np.split(np.array([own[item] for item in log["item"].tolist()]), start[1:])

    @torch.no_grad()
    def lists(part: int) -> np.ndarray:
        model.eval()
        histories = [history[: len(history) - 3 + part] for history in items]  # the last two are parts 1 and 2
        result = []
        for begin in range(0, len(users), _BATCH):
            some = histories[begin : begin + _BATCH]
            padded = torch.zeros(len(some), settings["window"], dtype=torch.int64)
            for row, history in enumerate(some):
                last = history[-settings["window"] :]
                padded[row, : len(last)] = torch.from_numpy(last)
            length = torch.tensor([min(len(history), settings["window"]) for history in some])
            scores = model.full_sort_predict(Interaction({"item_id_list": padded, "item_length": length}))
            scores[:, 0] = -torch.inf
            for row, history in enumerate(some):
                scores[row, torch.from_numpy(history)] = -torch.inf
            result.append(ours[scores.topk(TOP_K).indices.numpy()])
        model.train()
        return np.concatenate(result)

    clock, epoch = Clock(settings["seconds"], settings["clock"]), 0
    while not clock.is_over:
        clock.start()
        trainer._train_epoch(train, epoch)
        clock.stop()
        epoch += 1
        report(folder, epoch, clock, lists)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
