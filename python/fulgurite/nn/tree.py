"""Trees of candidate tokens, verified in one pass: masks and depths."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fulgurite._numbers import integer


def tree_parents(choices: Sequence[Sequence[int]]) -> list[int]:
    """Parent of every node of a tree given as Medusa's choices.

    A choice is the path from the root: ``(2, 0)`` is the best child of the root's third best child.
    Node 0 is the root; the choices follow, sorted by length and then by their entries.
    Cai et al., https://arxiv.org/abs/2401.10774, https://github.com/FasterDecoding/Medusa.

    Args:
        choices: paths of entries of at least 0, each once, with every shorter path that they begin
            with.

    Returns:
        T = len(choices) + 1 node numbers: the root's is −1, every other is below the node's own.

    Raises:
        ValueError: an empty, negative or repeated path, or one whose beginning is missing.

    >>> tree_parents([(0,), (0, 0), (1,), (0, 1), (0, 1, 0)])
    [-1, 0, 0, 1, 1, 4]
    """
    name = "tree_parents"
    whole = [tuple(integer(name, "choices", entry) for entry in choice) for choice in choices]
    paths = sorted(whole, key=lambda path: (len(path), path))
    node_of: dict[tuple[int, ...], int] = {(): 0}
    parents = [-1]
    for path in paths:
        if path in node_of or min(path) < 0:
            raise ValueError(
                f"tree_parents: expected different, non-empty paths of entries of at least 0, "
                f"got {path}"
            )
        if path[:-1] not in node_of:
            raise ValueError(f"tree_parents: expected {path[:-1]} among the choices, got {path}")
        node_of[path] = len(parents)
        parents.append(node_of[path[:-1]])
    return parents


def _check_parents(name: str, parents: Sequence[int]) -> list[int]:
    checked = [integer(name, "parents", parent) for parent in parents]
    for node, parent in enumerate(checked):
        if not -1 <= parent < node:
            raise ValueError(
                f"{name}: expected parent of node {node} in [-1, {node}), got {parent}"
            )
    return checked


def tree_depths(parents: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Depth of every node; its position in the text is the number of past tokens plus the depth.

    Rotary tables are gathered with it: ``cos[past + tree_depths(parents)]``.

    Args:
        parents: T numbers, each −1 (a root) or a node before; from :func:`tree_parents`, or any.
        device: where the result is made.

    Returns:
        (T), int64, 0 at a root.

    Raises:
        ValueError: a parent that is not before its node.

    >>> tree_depths([-1, 0, 0, 1, 1, 4])
    tensor([0, 1, 1, 2, 2, 3])
    """
    depths: list[int] = []
    for parent in _check_parents("tree_depths", parents):
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return torch.tensor(depths, dtype=torch.int64, device=device)


def tree_mask(parents: Sequence[int], past: int = 0, device: torch.device | None = None) -> Tensor:
    """Mask under which every node sees the past, its ancestors and itself.

    Each node's output is then that of the path from its root to it, run causally by itself.

    Args:
        parents: T numbers, each −1 (a root) or a node before; from :func:`tree_parents`, or any.
        past: keys before the tree, which all nodes see.
        device: where the mask is made.

    Returns:
        (1, 1, T, past + T), bool, True keeps; without ``causal``.

    Raises:
        ValueError: a parent that is not before its node; a negative ``past``.

    >>> tree_mask([-1, 0, 0, 1], past=1)[0, 0].int()
    tensor([[1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 0, 1, 0],
            [1, 1, 1, 0, 1]], dtype=torch.int32)
    """
    past = integer("tree_mask", "past", past, 0)
    sees: list[list[bool]] = []
    for node, parent in enumerate(_check_parents("tree_mask", parents)):
        row = list(sees[parent]) if parent >= 0 else [True] * past + [False] * len(parents)
        row[past + node] = True
        sees.append(row)
    mask = torch.tensor(sees, dtype=torch.bool, device=device)
    return mask.reshape(1, 1, len(parents), past + len(parents))
