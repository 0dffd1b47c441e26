"""What both programs are given and give back; of the standard library and numpy alone.

A program is called with a folder that holds `settings.json` and `log.npz`: `user`, `item` and `part` int64 [N] of the
interactions in the order of time (part 0: training, 1: each user's validation item, 2: the test item), all users having
all three. It adds `epochs.jsonl`, a line for each epoch that was looked at, and `lists_<epoch>.npz`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TOP_K = 10


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The settings and the log."""
    with np.load(folder / "log.npz") as log:
        return json.loads((folder / "settings.json").read_text()), dict(log)


def is_looked_at(epoch: int) -> bool:
    """Whether an epoch's model is asked for lists: 1 to 4, then fewer and fewer, about five in each doubling."""
    return epoch <= 4 or epoch % (1 << max(0, epoch.bit_length() - 3)) == 0


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Clock:
    """The seconds of training: what lies between `start` and `stop`.

    Args:
        kind: `cpu` counts what the processors spend on this process, for machines that do other work as well.
    """

    def __init__(self, budget: float, kind: str) -> None:
        self.seconds, self.budget, self._now, self._begin = 0.0, budget, CLOCKS[kind], 0.0

    def start(self) -> None:
        self._begin = self._now()

    def stop(self) -> None:
        self.seconds += self._now() - self._begin

    @property
    def is_over(self) -> bool:
        return self.seconds >= self.budget


def report(folder: Path, epoch: int, clock: Clock, lists: Callable[[int], np.ndarray]) -> None:
    """Keep an epoch's lists.

    Args:
        lists: for part 1 or 2 each user's best items without those before that part, int64 [num_users, TOP_K], -1 where
            there is none.
    """
    if is_looked_at(epoch) or clock.is_over:
        np.savez(folder / f"lists_{epoch}.npz", valid=lists(1), test=lists(2))
        with (folder / "epochs.jsonl").open("a") as file:
            print(json.dumps({"epoch": epoch, "seconds": clock.seconds}), file=file)
