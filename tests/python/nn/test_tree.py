"""Tree masks: ancestors by walking up, and every node like its path run causally by itself."""

import pytest
import torch

import fulgurite.nn.functional as F
from fulgurite.nn import rotary_table, tree_depths, tree_mask, tree_parents

CHOICES = [
    (0,),
    (1,),
    (2,),
    (0, 0),
    (0, 1),
    (1, 0),
    (2, 1),
    (0, 0, 0),
    (0, 0, 3),
    (
        2,
        1,
        0,
    ),
]
FOREST = [-1, 0, -1, 1, 2, 2, 4, 0]


def path_to(node: int, parents: list[int]) -> list[int]:
    path = []
    while node != -1:
        path.append(node)
        node = parents[node]
    return path[::-1]


def test_parents_of_choices() -> None:
    parents = tree_parents(CHOICES[::-1])  # the order that they come in does not matter
    ordered = [(), *sorted(CHOICES, key=lambda path: (len(path), path))]
    assert parents[0] == -1
    for node, path in enumerate(ordered[1:], start=1):
        assert ordered[parents[node]] == path[:-1]
    assert tree_parents([list(path) for path in CHOICES]) == parents
    assert tree_parents([]) == [-1]


@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("parents", [tree_parents(CHOICES), FOREST, [-1], [-1, 0, 1, 2]])
def test_mask_and_depths(parents: list[int], past: int) -> None:
    mask, depths = tree_mask(parents, past), tree_depths(parents)
    nodes = len(parents)
    assert mask.shape == (1, 1, nodes, past + nodes)
    assert mask.dtype == torch.bool
    assert depths.dtype == torch.int64
    for node in range(nodes):
        path = path_to(node, parents)
        kept = mask[0, 0, node].nonzero().flatten().tolist()
        assert kept == [*range(past), *(past + other for other in path)]
        assert depths[node] == len(path) - 1


def test_a_chain_is_causal() -> None:
    mask = tree_mask(range(-1, 5), past=3)
    assert torch.equal(mask[0, 0], torch.ones(6, 9, dtype=torch.bool).tril(3))


def test_no_nodes() -> None:
    assert tree_mask([], past=3).shape == (1, 1, 0, 3)
    assert tree_depths([]).shape == (0,)


def test_parents_as_a_tensor() -> None:
    parents = torch.tensor(FOREST)
    assert torch.equal(tree_mask(parents), tree_mask(FOREST))
    assert torch.equal(tree_depths(parents), tree_depths(FOREST))


@pytest.mark.parametrize("parents", [tree_parents(CHOICES), FOREST])
def test_every_node_is_its_path(parents: list[int]) -> None:
    """Rotated by depth and attended through the mask = the past and the path, causally."""
    torch.manual_seed(0)
    past, nodes = 7, len(parents)
    query = torch.randn(1, 4, nodes, 8, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, past + nodes, 8, dtype=torch.float64)
    cos, sin = (table.double() for table in rotary_table(past + nodes, 8))
    depths = tree_depths(parents)
    positions = torch.cat([torch.arange(past), past + depths])
    out = F.attention(
        F.rope(query, cos[past + depths], sin[past + depths]),
        F.rope(key, cos[positions], sin[positions]),
        value,
        mask=tree_mask(parents, past),
    )
    for node in range(nodes):
        path = path_to(node, parents)
        keys = [*range(past), *(past + other for other in path)]
        length = len(keys)
        straight = F.attention(
            F.rope(query[:, :, path], cos[past:length], sin[past:length]),
            F.rope(key[:, :, keys], cos[:length], sin[:length]),
            value[:, :, keys],
            causal=True,
        )
        torch.testing.assert_close(out[:, :, node], straight[:, :, -1], rtol=1e-12, atol=1e-13)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"tree_parents: expected \(0,\) among the choices"):
        tree_parents([(1,), (0, 1)])
    for wrong in ([(0,), (0,)], [(0,), ()], [(0,), (0, -1)]):
        with pytest.raises(ValueError, match="expected different, non-empty paths"):
            tree_parents(wrong)
    for wrong in ([0], [-1, 1], [-1, 2, 0], [-2]):
        with pytest.raises(ValueError, match=r"tree_mask: expected parent of node \d in \[-1, "):
            tree_mask(wrong)
    with pytest.raises(ValueError, match=r"tree_depths: expected parent of node 1 .* got 1"):
        tree_depths([-1, 1])
    with pytest.raises(ValueError, match="tree_mask: expected past of at least 0, got -1"):
        tree_mask([-1], past=-1)
