"""A trained student and the items that it ranks: loaded from a folder or the hub, asked, saved, shared."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.files import write_text
from src.core.paths import CARD_FILE, CONFIG_FILE, ITEMS_FILE, WEIGHTS_FILE, project_path
from src.student.checkpoint import (
    Catalogue,
    CheckpointInfo,
    load_catalogue,
    load_checkpoint,
    save_catalogue,
    save_checkpoint,
)
from src.student.models import Student

FILES = (CONFIG_FILE, WEIGHTS_FILE, ITEMS_FILE)
_EXPECTED = (
    f"expected the folder of a student ({', '.join(FILES)}) or the id of one on the Hugging Face hub, owner/name"
)
_MOST_SCORES = 2**24  # that are held at once: 64 MB


@dataclass(frozen=True)
class Recommendation:
    """One item, best first in a list: its raw id, its title, its score."""

    item_id: str
    title: str
    score: float


def find_student(given: str, revision: str | None = None, *, key: str) -> Path:
    """The folder that holds a student: itself, or where that of the hub lies in the cache, fetched if need be.

    Args:
        key: what `given` is called, for messages.

    Raises:
        UserError: no such folder or model, or no way to the hub.
    """
    folder = project_path(given)
    if folder.is_dir():
        if not (folder / CONFIG_FILE).is_file():
            raise UserError(f"{folder / CONFIG_FILE}: missing file; {key} names no student, {_EXPECTED}")
        return folder
    from src.core.foreign.hub import HubModel, is_hub_id  # half a second that a folder need not wait for

    if not is_hub_id(given):
        raise UserError(f"{key}={given}: no such folder; {_EXPECTED}")
    return HubModel(id=given, revision=revision, key=key, instead=_EXPECTED).fetch([*FILES, CARD_FILE])


class Recommender:
    """A trained student and the items that it ranks: all that serving needs, without the log or a teacher's files.

    Attributes:
        model: in evaluation mode; items: its catalogue; info: where it comes from; card: text of its model card.
        unknown: names of histories that are no item's and were skipped, with how often.
    """

    def __init__(
        self,
        model: Student,
        items: Catalogue,
        info: CheckpointInfo,
        *,
        card: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.model, self.items, self.info, self.card = model.eval().to(self.device), items, info, card
        self.unknown: Counter[str] = Counter()
        self._numbers = {title: item for item, title in enumerate(items.titles)}
        self._numbers |= {item_id: item for item, item_id in enumerate(items.item_ids)}  # goes before an equal title

    @classmethod
    def from_pretrained(
        cls, student: str | Path, *, revision: str | None = None, device: torch.device | None = None
    ) -> "Recommender":
        """The student of a folder (`models/baseline` or `models/distill` of a run, wherever it was copied to), or of
        the Hugging Face hub.

        Args:
            student: the folder, or owner/name where there is no such folder.
            revision: branch, tag or commit on the hub; None: its main branch.

        Raises:
            UserError: no such student, a file is missing or damaged, or does not fit the others.
        """
        folder = find_student(str(student), revision, key="student")
        model, info = load_checkpoint(folder)
        card = folder / CARD_FILE
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
        return cls(model, load_catalogue(folder, model.config.num_items), info, card=text, device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write all that `from_pretrained` reads, and the model card if there is one."""
        folder = Path(folder)
        save_catalogue(folder, self.items)
        save_checkpoint(folder, self.model, self.model.state_dict(), self.info)
        if self.card is not None:
            write_text(folder / CARD_FILE, self.card)

    def push_to_hub(self, model: str, *, private: bool = True) -> str:
        """Upload the student as `model`, owner/name, of the Hugging Face hub; returns its address.

        Raises:
            UserError: there is no way to the hub, or no token that may write there.
        """
        from src.core.foreign.hub import push_folder

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_folder(Path(folder), model, private=private)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        *,
        top_k: int,
        show_history: bool = False,
        skip_unknown: bool = False,
        allowed: Iterable[str] = (),
    ) -> list[list[Recommendation]]:
        """The `top_k` best items after each history.

        A history that leaves fewer has fewer, one of which nothing is known none.

        Args:
            histories: raw item ids or exact titles, oldest first; the model reads the last `max_seq_len`.
            show_history: whether items of the history may be recommended again.
            skip_unknown: whether names that are no item's are left out and counted in `unknown`, or refused.
            allowed: raw ids or titles of the only items that may be recommended; none: all may.

        Raises:
            UserError: an empty history, an unknown item, or `top_k` above the number of items that may be recommended.
        """
        allowed_items = sorted({self._number("recommend.allowed", name) for name in allowed})
        free = len(allowed_items) or len(self.items.item_ids)
        if not 1 <= top_k <= free:
            which = "that are allowed" if allowed_items else "of the student"
            raise UserError(f"recommend.top_k={top_k}: must be from 1 to {free}, the items {which}")
        found = [self._items(history, skip_unknown) for history in histories]
        size = max(1, _MOST_SCORES // len(self.items.item_ids))
        known = [number for number, items in enumerate(found) if items]
        best: list[list[Recommendation]] = [[] for _ in found]
        for begin in range(0, len(known), size):
            part = known[begin : begin + size]
            scores = self._scores([found[number] for number in part], show_history, allowed_items)
            top = scores.topk(top_k)
            for number, items, values in zip(part, top.indices.tolist(), top.values.tolist(), strict=True):
                best[number] = [
                    Recommendation(self.items.item_ids[item], self.items.titles[item], value)
                    for item, value in zip(items, values, strict=True)
                    if value > float("-inf")
                ]
        return best

    @torch.no_grad()
    def _scores(self, histories: list[list[int]], show_history: bool, allowed: list[int]) -> Tensor:
        """Scores of all items, -inf for those that may not be recommended: float32 [len(histories), num_items]."""
        config = self.model.config
        windows = [items[-config.max_seq_len :] for items in histories]
        padded = [window + [config.num_items] * (config.max_seq_len - len(window)) for window in windows]
        lengths = [len(window) for window in windows]
        scores = self.model(torch.tensor(padded, device=self.device), torch.tensor(lengths, device=self.device))
        if allowed:
            hidden = torch.ones(config.num_items, dtype=torch.bool, device=self.device)
            scores = scores.masked_fill(
                hidden.index_fill_(0, torch.tensor(allowed, device=self.device), False), -torch.inf
            )
        if not show_history:
            rows = [row for row, items in enumerate(histories) for _ in items]
            scores[rows, [item for items in histories for item in items]] = -torch.inf
        return scores.float().cpu()

    def _items(self, history: Sequence[str], skip_unknown: bool) -> list[int]:
        """Item numbers of a history."""
        if not history and not skip_unknown:
            raise UserError("recommend.history=[]: must name at least one item, by raw id or exact title, oldest first")
        if skip_unknown:
            self.unknown.update(name for name in history if name not in self._numbers)
            return [self._numbers[name] for name in history if name in self._numbers]
        return [self._number("recommend.history", name) for name in history]

    def _number(self, key: str, name: str) -> int:
        if name not in self._numbers:
            close = get_close_matches(name, self._numbers, n=3)
            hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
            raise UserError(
                f"{key}: {name!r} is neither a raw item id nor a title of the student's "
                f"{len(self.items.item_ids)} items{hint}"
            )
        return self._numbers[name]
