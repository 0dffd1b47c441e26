"""Prompts: from a history and candidates to token ids, with markers where item embeddings go.

After each title stands a marker token. Either it carries the projected embedding of the item (one kind of
marker for the history, one for the candidates), or it is the plain placeholder [PH]. One template and one
kind of marker serve a whole batch. The answer is a segment of its own: it begins with its own BOS, so the
model has to produce BOS, title, newline.
"""

import functools
import logging
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.core.errors import UserError
from src.core.logging import LOGGER_NAME
from src.teacher.prompt.wording import CANDIDATE_MARKER, CANDIDATES, HISTORY, HISTORY_MARKER, PLACEHOLDER, Wording

PAD_TOKEN = "[PAD]"
TERMINATOR = "\n"
IGNORED = -100


@dataclass(frozen=True)
class Prompt:
    """One row's prompt.

    Attributes:
        ids: token ids of the prompt, BOS first.
        items: item ids behind the embedding markers, in reading order; empty with placeholders.
    """

    ids: list[int]
    items: list[int]


@dataclass(frozen=True)
class PromptBatch:
    """Padded prompts.

    Attributes:
        ids: int64 [B, S]; mask: bool [B, S], False on padding.
        is_marker: bool [B, S], True where an item embedding belongs; markers: int64 [M], their item ids in
            row-major order.
        labels: int64 [B, S], IGNORED outside the answer.
    """

    ids: Tensor
    mask: Tensor
    is_marker: Tensor
    markers: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "PromptBatch":
        return PromptBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def spell(tokenizer: PreTrainedTokenizerBase, text: str, *, with_bos: bool = False) -> list[int]:
    """Token ids of a text of strangers, in which the name of a special token (`</s>`, `[PH]`) is text like any other.

    Both kinds of tokenizers read the option from themselves: the slow ones lose it on the way from a call.
    """
    before, tokenizer.split_special_tokens = tokenizer.split_special_tokens, True
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=with_bos).input_ids
    finally:
        tokenizer.split_special_tokens = before
    return ids


class PromptBuilder:
    """Turns rows into prompts for one catalogue and tokenizer.

    Args:
        context: tokens that the LM reads at most, prompt and answer together; None sets no bound.

    Raises:
        UserError: a title is blank, nothing to the tokenizer, or too long for the context; or the tokenizer has no
            newline.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, titles: list[str], wording: Wording, context: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.titles = titles
        self.templates = wording.templates
        self.open_template = wording.open_template
        self.embedding_ids = tokenizer.convert_tokens_to_ids([HISTORY_MARKER, CANDIDATE_MARKER])
        self.placeholder_id = tokenizer.convert_tokens_to_ids(PLACEHOLDER)
        self.bos_id = tokenizer.bos_token_id
        self._cached = functools.lru_cache(maxsize=None)(self._tokenize)  # titles recur in every row
        self.newline_id = self._find_newline()
        self._context = context
        self._longest_answer = self._check_titles()
        self._has_dropped = False

    def _find_newline(self) -> int:
        ids = self.tokens(TERMINATOR)
        if not ids or ids[-1] == self.tokenizer.unk_token_id or TERMINATOR not in self.tokenizer.decode(ids[-1:]):
            raise UserError(
                f"teacher.llm_path={self.tokenizer.name_or_path}: its tokenizer loses the newline that ends an answer; "
                "take an LLM whose tokenizer has one, as those of the LLaMA family do"
            )
        return ids[-1]

    def _check_titles(self) -> int:
        """Length of the longest answer in tokens."""
        blank = [item for item, title in enumerate(self.titles) if not title.strip()]
        if blank:
            raise UserError(f"titles: item {blank[0]} has a blank title ({len(blank)} in all); the LLM reads titles")
        unknown = {self.tokenizer.unk_token_id}
        lost = [item for item, title in enumerate(self.titles) if set(self.tokens(title)) <= unknown]
        if lost:
            raise UserError(
                f"titles: that of item {lost[0]}, {self.titles[lost[0]]!r}, is nothing to the LLM's tokenizer "
                f"({len(lost)} in all); write it in other characters"
            )
        if self._context is None:
            return 0
        lengths = [len(self.answer(item)) for item in range(len(self.titles))]
        longest = int(np.argmax(lengths))
        if lengths[longest] > self._context // 2:
            raise UserError(
                f"titles: that of item {longest} has {lengths[longest]} tokens, the LLM reads {self._context} in all; "
                "shorten it"
            )
        return lengths[longest]

    def title_length(self, item: int) -> int:
        """Tokens of an item's title."""
        return len(self.tokens(self.titles[item]))

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(spell(self.tokenizer, text))

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text without markers, no BOS."""
        return list(self._cached(text))

    def text(self, history: np.ndarray, candidates: np.ndarray, *, template: int, embed: bool) -> str:
        """The prompt as text, markers included; without candidates it is an open question."""
        segments = self._segments(history, candidates, template=template, embed=embed)
        return "".join(text + (marker or "") for text, marker in segments)

    def _segments(
        self, history: np.ndarray, candidates: np.ndarray, *, template: int, embed: bool
    ) -> list[tuple[str, str | None]]:
        """The prompt cut at its markers: the text before each, and the marker; None behind the last text."""
        history_marker, candidate_marker = (HISTORY_MARKER, CANDIDATE_MARKER) if embed else (PLACEHOLDER,) * 2
        places = {HISTORY: (history, history_marker), CANDIDATES: (candidates, candidate_marker)}
        segments: list[tuple[str, str | None]] = []
        text = ""
        for part in re.split(f"({re.escape(HISTORY)}|{re.escape(CANDIDATES)})", self._wording(template, candidates)):
            items, marker = places.get(part, ((), None))
            text += part if marker is None else ""
            for place, item in enumerate(items):
                segments.append((text + ", " * (place > 0) + f"{self.titles[item]} ", marker))
                text = ""
        return [*segments, (text, None)]

    def _wording(self, template: int, candidates: np.ndarray) -> str:
        return self.templates[template] if len(candidates) else self.open_template

    def prompt(self, history: np.ndarray, candidates: np.ndarray, *, template: int, embed: bool) -> Prompt:
        """Tokenize a prompt; where it would leave no room for an answer, the oldest items are left out.

        Raises:
            UserError: even without history it is too long.
        """
        prompt = self._whole_prompt(history, candidates, template=template, embed=embed)
        while self._context is not None and len(prompt.ids) + self._longest_answer > self._context:
            if len(history) == 0:
                raise UserError(
                    f"teacher.num_candidates={len(candidates)}: their titles take {len(prompt.ids)} tokens, the LLM "
                    f"reads {self._context}; use fewer"
                )
            history = history[1:]
            prompt = self._whole_prompt(history, candidates, template=template, embed=embed)
            self._warn_once()
        return prompt

    def _warn_once(self) -> None:
        if not self._has_dropped:
            logging.getLogger(LOGGER_NAME).warning(
                "a prompt is longer than the %d tokens that the LLM reads: its oldest items are left out, here and in "
                "others like it",
                self._context,
            )
            self._has_dropped = True

    def _whole_prompt(self, history: np.ndarray, candidates: np.ndarray, *, template: int, embed: bool) -> Prompt:
        """Tokenize a prompt.

        Markers are special tokens that swallow the blanks around them, so what stands between two of them
        is tokenized on its own; tokenizing those pieces with a cache gives the same ids as the whole text.
        """
        marker_ids = {HISTORY_MARKER: self.embedding_ids[0], CANDIDATE_MARKER: self.embedding_ids[1]}
        ids = [self.bos_id]
        for text, marker in self._segments(history, candidates, template=template, embed=embed):
            if text.strip():
                ids.extend(self.tokens(text.strip()))
            if marker is not None:
                ids.append(marker_ids.get(marker, self.placeholder_id))
        return Prompt(ids, [*history.tolist(), *candidates.tolist()] if embed else [])

    def answer(self, item: int) -> list[int]:
        """Token ids of an answer: BOS, title, newline.

        The newline is a token of its own: byte-level tokenizers would join it to a title's last bracket, and
        generation would miss it.
        """
        return [self.bos_id, *self.tokens(self.titles[item]), self.newline_id]

    def batch(self, prompts: list[Prompt], answers: list[list[int]] | None = None) -> PromptBatch:
        """Left-padded prompts, each followed by its answer if there is one.

        Left, because generation continues at the right end; with the padding masked and positions counted
        from the first real token it changes nothing in training.
        """
        endings = answers or [[]] * len(prompts)
        width = max(len(p.ids) + len(a) for p, a in zip(prompts, endings, strict=True))
        ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(prompts), width, dtype=torch.bool)
        labels = torch.full((len(prompts), width), IGNORED)
        for i, (prompt, ending) in enumerate(zip(prompts, endings, strict=True)):
            row = torch.tensor(prompt.ids + ending)
            ids[i, width - len(row) :] = row
            mask[i, width - len(row) :] = True
            if ending:
                labels[i, width - len(ending) :] = torch.tensor(ending)
        is_marker = torch.isin(ids, torch.tensor(self.embedding_ids)) & mask
        markers = torch.tensor([item for prompt in prompts for item in prompt.items], dtype=torch.int64)
        return PromptBatch(ids, mask, is_marker, markers, labels)
