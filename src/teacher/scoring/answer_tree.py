"""Candidates' answers as a tree, so that one forward pass behind a prompt scores them all."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnswerTrees:
    """One tree per row: the answers' common beginnings merged, nodes in depth-first order.

    The last token of an answer is scored but never read, so it is no node.

    Attributes:
        token, depth: of each node, int64 [B, A]; depth 0 follows the prompt; 0 beyond a row's nodes.
        end: int64 [B, A], the number behind the last node below each; 0 beyond.
        row, candidate: int64 [T], whose answer each scored token belongs to.
        source, target: int64 [T], the node it follows (-1: the prompt's end), and the token.
    """

    token: Tensor
    depth: Tensor
    end: Tensor
    row: Tensor
    candidate: Tensor
    source: Tensor
    target: Tensor

    def to(self, device: torch.device) -> "AnswerTrees":
        return AnswerTrees(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def visible(self) -> Tensor:
        """Which nodes (last axis) each node sees: itself and those above it; bool [B, A, A]."""
        number = torch.arange(self.token.shape[1], device=self.token.device)
        return (number <= number[:, None]) & (number[:, None] < self.end[:, None])


def build_trees(answers: list[list[list[int]]]) -> AnswerTrees:
    """The trees of some rows' answers.

    Args:
        answers: token ids per row and candidate, none empty.
    """
    nodes, scored = [], []
    for row, row_answers in enumerate(answers):
        row_nodes, row_scored = _grow(row_answers)
        nodes.append(torch.tensor(row_nodes).reshape(-1, 3))
        scored += [(row, *entry) for entry in row_scored]
    padded = torch.nn.utils.rnn.pad_sequence(nodes, batch_first=True)  # [B, A, 3]
    return AnswerTrees(*padded.unbind(-1), *torch.tensor(scored).unbind(-1))


def _grow(answers: list[list[int]]) -> tuple[list[list[int]], list[tuple[int, int, int]]]:
    """One row's nodes (token, depth, end) and scored tokens (candidate, source, target).

    In sorted order each answer shares its beginning with the one before it or with none.
    """
    nodes: list[list[int]] = []
    scored: list[tuple[int, int, int]] = []
    path: list[int] = []  # the nodes of the last answer's tokens but its last
    for candidate in sorted(range(len(answers)), key=answers.__getitem__):
        *read, last = answers[candidate]
        shared = 0
        while shared < min(len(path), len(read)) and nodes[path[shared]][0] == read[shared]:
            shared += 1
        path = path[:shared] + list(range(len(nodes), len(nodes) + len(read) - shared))
        nodes += [[token, depth, 0] for depth, token in enumerate(read) if depth >= shared]
        for node in path:
            nodes[node][2] = len(nodes)
        scored += zip([candidate] * len(answers[candidate]), [-1, *path], [*read, last], strict=True)
    return nodes, scored
