"""How evenly a router spreads its assignments."""

from typing import NamedTuple

from torch import Tensor


class LoadStatistics(NamedTuple):
    """Of the assignments that were counted; all tensors, so that nothing waits for them."""

    share: Tensor
    """(E): each expert's share of the assignments; NaN before there is one."""
    imbalance: Tensor
    """0-dim: the largest share times E, 1 at balance."""
    idle: Tensor
    """0-dim: experts without any."""
    dropped: Tensor
    """0-dim: share of the assignments that found no room."""


def load_statistics(load: Tensor, dropped: Tensor) -> LoadStatistics:
    """From the assignments of each expert (E) and the number of those that found no room.

    >>> import torch
    >>> float(load_statistics(torch.tensor([3, 1, 0]), torch.tensor(1)).imbalance)
    2.25
    """
    total = load.sum()
    share = load.double() / total
    return LoadStatistics(
        share=share,
        imbalance=share.max() * load.shape[0],
        idle=(load == 0).sum(),
        dropped=dropped.double() / total,
    )
