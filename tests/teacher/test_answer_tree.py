"""Trees of answers by hand."""

import torch

from src.teacher.scoring.answer_tree import build_trees


def test_common_beginnings_are_one_branch():
    """1-2-{3, 4-5} and 6: read are 1, 2, 4; the last tokens 3, 5, 6 are only scored."""
    trees = build_trees([[[6], [1, 2, 4, 5], [1, 2, 3]]])

    assert trees.token.tolist() == [[1, 2, 4]]
    assert trees.depth.tolist() == [[0, 1, 2]]
    assert trees.end.tolist() == [[3, 3, 3]]
    scored = set(zip(trees.candidate.tolist(), trees.source.tolist(), trees.target.tolist(), strict=True))
    assert scored == {(0, -1, 6), (1, -1, 1), (1, 0, 2), (1, 1, 4), (1, 2, 5), (2, -1, 1), (2, 0, 2), (2, 1, 3)}


def test_a_node_sees_itself_and_those_above_it():
    """Depth first: 1, its children 2 and 3, then 4 with its child 5."""
    trees = build_trees([[[4, 5, 9], [1, 3, 9], [1, 2, 9]], [[7, 9]]])

    assert trees.token.tolist() == [[1, 2, 3, 4, 5], [7, 0, 0, 0, 0]]
    assert trees.end[0].tolist() == [3, 2, 3, 5, 5]
    above = [{0}, {0, 1}, {0, 2}, {3}, {3, 4}]
    assert [set(row.nonzero().flatten().tolist()) for row in trees.visible()[0]] == above
    assert trees.visible()[1].nonzero().tolist() == [[0, 0]]


def test_an_answer_that_begins_another_and_one_given_twice():
    trees = build_trees([[[1, 2], [1, 2, 3], [1, 2]]])

    assert trees.token.tolist() == [[1, 2]]
    assert trees.row.tolist() == [0] * 7
    paths = {c: [] for c in range(3)}
    for candidate, source, target in zip(trees.candidate, trees.source, trees.target, strict=True):
        paths[int(candidate)].append((int(source), int(target)))
    assert paths == {0: [(-1, 1), (0, 2)], 1: [(-1, 1), (0, 2), (1, 3)], 2: [(-1, 1), (0, 2)]}


def test_answers_of_one_token_need_no_node():
    trees = build_trees([[[1], [2]]])
    assert trees.token.shape == (1, 0)
    assert trees.visible().shape == (1, 0, 0)
    assert torch.equal(trees.source, torch.tensor([-1, -1]))
