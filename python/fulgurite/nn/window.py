"""Swin's windows: cutting an image into them, putting it together, and the mask of shifted ones."""

import torch
from torch import Tensor

from fulgurite._numbers import integer, two_integers


def _check_windows(
    name: str, height: int, width: int, window_size: tuple[int, int]
) -> tuple[int, int]:
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        integer(name, "height", height, 0)
        integer(name, "width", width, 0)
        window_size = two_integers(name, "window_size", window_size, 1)
    rows, columns = window_size
    if rows < 1 or columns < 1 or height % rows != 0 or width % columns != 0:
        raise ValueError(
            f"{name}: expected height and width in multiples of the window "
            f"({rows}, {columns}), got ({height}, {width})"
        )
    return rows, columns


def window_partition(x: Tensor, window_size: tuple[int, int]) -> Tensor:
    """Cut images into windows, row by row of windows, and each window into its positions.

    Swin Transformer, https://arxiv.org/abs/2103.14030,
    https://github.com/microsoft/Swin-Transformer.

    Args:
        x: (B, height, width, C), any dtype.
        window_size: (wh, ww), dividing height and width.

    Returns:
        (B·nW, wh·ww, C), contiguous, nW = (height/wh)·(width/ww); window w of image b is row
        b·nW + w.

    Raises:
        ValueError: x is not 4-D; height or width is not a multiple of the window's.

    >>> image = torch.arange(8).view(1, 2, 4, 1)
    >>> window_partition(image, (2, 2)).squeeze(-1)
    tensor([[0, 1, 4, 5],
            [2, 3, 6, 7]])
    """
    if x.dim() != 4:
        raise ValueError(f"window_partition: expected x of shape [B, H, W, C], got {list(x.shape)}")
    batch, height, width, channels = x.shape
    rows, columns = _check_windows("window_partition", height, width, window_size)
    cut = x.reshape(batch, height // rows, rows, width // columns, columns, channels)
    windows = batch * (height // rows) * (width // columns)
    return cut.transpose(2, 3).reshape(windows, rows * columns, channels).contiguous()


def window_reverse(
    windows: Tensor, window_size: tuple[int, int], height: int, width: int
) -> Tensor:
    """Put windows together again: the inverse of :func:`window_partition`.

    Args:
        windows: (B·nW, wh·ww, C), any dtype.
        window_size: (wh, ww), dividing height and width.
        height, width: of the images.

    Returns:
        (B, height, width, C), contiguous.

    Raises:
        ValueError: windows of another shape; sizes that are no multiples of the window's.

    >>> image = torch.randn(2, 6, 9, 5)
    >>> torch.equal(window_reverse(window_partition(image, (2, 3)), (2, 3), 6, 9), image)
    True
    """
    rows, columns = _check_windows("window_reverse", height, width, window_size)
    down, across = height // rows, width // columns
    per_image = down * across
    if (
        windows.dim() != 3
        or windows.size(1) != rows * columns
        or per_image == 0
        or windows.size(0) % per_image != 0
    ):
        raise ValueError(
            f"window_reverse: expected windows of shape [B·{per_image}, {rows * columns}, C], "
            f"got {list(windows.shape)}"
        )
    batch, channels = windows.size(0) // per_image, windows.size(2)
    cut = windows.reshape(batch, down, across, rows, columns, channels)
    return cut.transpose(2, 3).reshape(batch, height, width, channels).contiguous()


def shifted_window_mask(
    height: int,
    width: int,
    window_size: tuple[int, int],
    shift: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor:
    """Which pairs of a shifted window were neighbours before the roll.

    After ``torch.roll(x, (-shift[0], -shift[1]), (1, 2))`` of (B, height, width, C) the last window
    of a row or column holds two opposite borders of the image, which must not see each other.
    Swin hides such pairs with a bias of −100; hiding them altogether is the same within e^-100.

    Attention repeats a mask over its batch: window w of image b, row b·nW + w of the batch that
    :func:`window_partition` makes, uses ``mask[w]``.

    Args:
        height, width: of the image, multiples of the window's.
        window_size: (wh, ww).
        shift: (sh, sw), 0 ≤ shift < window; Swin takes half the window, and 0 along a side that one
            window covers.
        device: where the mask is made.

    Returns:
        (nW, 1, wh·ww, wh·ww), bool, True keeps.

    Raises:
        ValueError: sizes that are no multiples of the window's, or a shift outside the window.

    >>> mask = shifted_window_mask(4, 4, (2, 2), (1, 1))
    >>> mask.shape
    torch.Size([4, 1, 4, 4])
    >>> mask[0].all().item(), mask[3, 0].int().tolist()  # the last window: four corners
    (True, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    """
    rows, columns = _check_windows("shifted_window_mask", height, width, window_size)
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        shift = two_integers("shifted_window_mask", "shift", shift, 0)
    down, across = shift
    if not (0 <= down < rows and 0 <= across < columns):
        raise ValueError(
            f"shifted_window_mask: expected a shift below the window {(rows, columns)}, "
            f"got {(down, across)}"
        )
    row = torch.arange(height, dtype=torch.int64, device=device)
    column = torch.arange(width, dtype=torch.int64, device=device)
    row_came_around, column_came_around = row >= height - down, column >= width - across
    border = 2 * row_came_around[:, None].int() + column_came_around.int()  # (height, width)
    of_window = window_partition(border[None, :, :, None], window_size).squeeze(-1)  # (nW, n)
    return (of_window[:, :, None] == of_window[:, None, :]).unsqueeze(1)
