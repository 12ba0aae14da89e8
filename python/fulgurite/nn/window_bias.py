"""Swin's relative position bias inside a window: a table (v1), or a small network (v2)."""

import torch
from torch import Tensor, nn

from fulgurite._numbers import integer, two_integers


def window_position_index(
    window_size: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Row of the bias table for every pair of positions of a window.

    ``(Δy + wh − 1)·(2·ww − 1) + Δx + ww − 1``, with Δ the query's minus the key's row and column.
    Swin Transformer, https://arxiv.org/abs/2103.14030,
    https://github.com/microsoft/Swin-Transformer.

    Args:
        window_size: (wh, ww).
        device: where the index is made.

    Returns:
        (wh·ww, wh·ww), int64, in [0, (2·wh − 1)·(2·ww − 1)).

    Raises:
        ValueError: a window side below 1.

    >>> window_position_index((1, 3))
    tensor([[2, 1, 0],
            [3, 2, 1],
            [4, 3, 2]])
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        window_size = two_integers("window_position_index", "window_size", window_size, 1)
    rows, columns = window_size
    position = torch.arange(rows * columns, dtype=torch.int64, device=device)
    y, x = position // columns, position % columns
    down = y[:, None] - y + (rows - 1)
    across = x[:, None] - x + (columns - 1)
    return down * (2 * columns - 1) + across


def log_spaced_coordinates(
    window_size: tuple[int, int],
    pretrained_window_size: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Swin v2's coordinates of all relative positions of a window, in the order of its bias table.

    ``sign(x)·log₂(1 + 8|x|) / log₂ 8`` with x = Δ / (side − 1); a side of 1 gives 0. Dividing
    by the side of the pretraining's window keeps trained distances where they were.
    Liu et al., https://arxiv.org/abs/2111.09883, https://github.com/microsoft/Swin-Transformer.

    Args:
        window_size: (wh, ww).
        pretrained_window_size: the window of the pretraining; None is window_size.
        device: where the coordinates are made.

    Returns:
        ((2·wh − 1)·(2·ww − 1), 2), float32: (down, across).

    Raises:
        ValueError: a window side below 1.

    >>> log_spaced_coordinates((1, 3))[:, 1]
    tensor([-1.0566, -0.7740,  0.0000,  0.7740,  1.0566])
    """
    trained = window_size if pretrained_window_size is None else pretrained_window_size
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        name = "log_spaced_coordinates"
        window_size = two_integers(name, "window_size", window_size, 1)
        trained = two_integers(name, "pretrained_window_size", trained, 1)
    rows, columns = window_size
    down = torch.arange(1 - rows, rows, dtype=torch.float64, device=device)
    across = torch.arange(1 - columns, columns, dtype=torch.float64, device=device)
    down, across = down / max(trained[0] - 1, 1), across / max(trained[1] - 1, 1)
    shape = (2 * rows - 1, 2 * columns - 1)
    grid = torch.stack([down[:, None].expand(shape), across.expand(shape)], dim=-1)
    spaced = grid.sign() * torch.log2(1.0 + 8.0 * grid.abs()) / 3.0
    return spaced.flatten(0, 1).to(torch.float32)


class WindowPositionBias(nn.Module):
    """Swin v1's learned bias of a head and a relative position inside the window.

    ``bias[h, i, j] = table[index(i, j), h]``, with :func:`window_position_index`: pass it to
    attention as ``bias``, together with :func:`fulgurite.nn.shifted_window_mask` as ``mask``.

    Args:
        window_size: (wh, ww).
        num_heads: query heads H.
        device, dtype: of the parameter.

    Parameter: ``table`` ((2·wh − 1)·(2·ww − 1), H), drawn from N(0, 0.02²): the layout of the
    ``relative_position_bias_table`` of Swin checkpoints.

    Raises:
        ValueError: a window side or ``num_heads`` below 1.

    >>> WindowPositionBias((7, 7), num_heads=3)().shape
    torch.Size([1, 3, 49, 49])
    """

    index: Tensor

    def __init__(
        self,
        window_size: tuple[int, int],
        num_heads: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "WindowPositionBias"
        rows, columns = two_integers(name, "window_size", window_size, 1)
        num_heads = integer(name, "num_heads", num_heads, 1)
        self.window_size = (rows, columns)
        self.register_buffer("index", window_position_index(window_size, device), persistent=False)
        self.table = nn.Parameter(
            torch.empty((2 * rows - 1) * (2 * columns - 1), num_heads, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table from N(0, 0.02²), and set the index."""
        nn.init.normal_(self.table, std=0.02)
        self.index.copy_(window_position_index(self.window_size, self.index.device))

    def forward(self) -> Tensor:
        """Return the bias (1, H, wh·ww, wh·ww) in the table's dtype, with a gradient to it."""
        return self.table.t()[:, self.index].unsqueeze(0)


class ContinuousPositionBias(nn.Module):
    """Swin v2's bias: a network of the log-spaced relative position, bounded to (0, 16).

    ``bias[h, i, j] = 16·sigmoid(W₂ relu(W₁ x + b))_h``, x from :func:`log_spaced_coordinates`. The
    same weights serve windows of every size.

    Args:
        window_size: (wh, ww).
        num_heads: query heads H.
        pretrained_window_size: the window of the pretraining; None is window_size.
        hidden_dim: width of the hidden layer.
        device, dtype: of the parameters.

    Parameters: ``hidden`` (a Linear from 2 to hidden_dim) and ``out`` (a Linear from hidden_dim to
    H, without bias): ``cpb_mlp.0`` and ``cpb_mlp.2`` of Swin v2 checkpoints.

    Raises:
        ValueError: a window side, ``num_heads`` or ``hidden_dim`` below 1.

    >>> bias = ContinuousPositionBias((8, 8), num_heads=3)()
    >>> bias.shape, bool((bias > 0).all() and (bias < 16).all())
    (torch.Size([1, 3, 64, 64]), True)
    """

    index: Tensor

    def __init__(
        self,
        window_size: tuple[int, int],
        num_heads: int,
        pretrained_window_size: tuple[int, int] | None = None,
        hidden_dim: int = 512,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "ContinuousPositionBias"
        num_heads = integer(name, "num_heads", num_heads, 1)
        hidden_dim = integer(name, "hidden_dim", hidden_dim, 1)
        trained = window_size if pretrained_window_size is None else pretrained_window_size
        self.window_size = two_integers(name, "window_size", window_size, 1)
        self.pretrained_window_size = two_integers(name, "pretrained_window_size", trained, 1)
        self.register_buffer("index", window_position_index(window_size, device), persistent=False)
        self.hidden = nn.Linear(2, hidden_dim, device=device, dtype=dtype)
        self.out = nn.Linear(hidden_dim, num_heads, bias=False, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw both layers as :class:`torch.nn.Linear` does, and set the index."""
        self.hidden.reset_parameters()
        self.out.reset_parameters()
        self.index.copy_(window_position_index(self.window_size, self.index.device))

    def forward(self) -> Tensor:
        """Return the bias (1, H, wh·ww, wh·ww), float32 (float64 for float64 weights)."""
        # In float64, which autocast leaves alone: 8 bits of 16·sigmoid would be steps of 1/16.
        # The coordinates are made here, because a buffer would follow the module into 16 bits.
        weight = self.out.weight
        coordinates = log_spaced_coordinates(
            self.window_size, self.pretrained_window_size, weight.device
        )
        hidden = nn.functional.linear(
            coordinates.double(), self.hidden.weight.double(), self.hidden.bias.double()
        ).relu()
        table = 16.0 * nn.functional.linear(hidden, weight.double()).sigmoid()
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return table.to(dtype).t()[:, self.index].unsqueeze(0)
