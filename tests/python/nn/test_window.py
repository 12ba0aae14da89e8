"""Window partition, its inverse and the shifted mask, position by position and in attention."""

import pytest
import torch
from torch import Tensor

from fulgurite.nn import (
    WindowPositionBias,
    shifted_window_mask,
    window_partition,
    window_reverse,
)

SIZES = [(4, 6, (2, 3)), (8, 8, (4, 4)), (6, 6, (6, 6)), (5, 7, (1, 7)), (6, 4, (3, 1))]


@pytest.mark.parametrize(("height", "width", "window"), SIZES)
def test_partition(height: int, width: int, window: tuple[int, int]) -> None:
    x = torch.randn(2, height, width, 3)
    rows, columns = window
    windows = window_partition(x, window)
    assert windows.is_contiguous()
    row = 0
    for b in range(2):
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                for position in range(rows * columns):
                    y, z = top + position // columns, left + position % columns
                    assert torch.equal(windows[row, position], x[b, y, z])
                row += 1
    assert row == len(windows)
    assert torch.equal(window_reverse(windows, window, height, width), x)


def test_partition_of_strided_and_integer_input() -> None:
    x = torch.arange(2 * 4 * 6 * 3).view(2, 3, 4, 6).permute(0, 2, 3, 1)
    assert torch.equal(window_partition(x, (2, 2)), window_partition(x.contiguous(), (2, 2)))
    assert window_partition(x[:0], (2, 2)).shape == (0, 4, 3)
    assert window_reverse(window_partition(x[:0], (2, 2)), (2, 2), 4, 6).shape == (0, 4, 6, 3)


def neighbours(height: int, width: int, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Keep two positions of a window iff they were less than a window apart before the roll."""
    rows, columns = window
    masks = []
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            places = [
                ((top + y + shift[0]) % height, (left + x + shift[1]) % width)
                for y in range(rows)
                for x in range(columns)
            ]
            masks.append(
                [[abs(y - v) < rows and abs(x - u) < columns for v, u in places] for y, x in places]
            )
    return torch.tensor(masks).unsqueeze(1)


@pytest.mark.parametrize(
    ("height", "width", "window", "shift"),
    [
        (8, 8, (4, 4), (2, 2)),
        (8, 12, (4, 3), (2, 1)),
        (14, 14, (7, 7), (3, 3)),
        (6, 9, (3, 3), (0, 1)),
        (6, 9, (3, 3), (1, 0)),
        (6, 9, (3, 3), (0, 0)),
        (6, 6, (3, 2), (2, 1)),
    ],
)
def test_shifted_mask(
    height: int, width: int, window: tuple[int, int], shift: tuple[int, int]
) -> None:
    mask = shifted_window_mask(height, width, window, shift)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, neighbours(height, width, window, shift))


def test_shifted_mask_has_swins_nine_regions() -> None:
    """Swin's own construction: numbers 0 to 8 by slices, kept where equal."""
    height, width, size, shift = 12, 8, 4, 2
    cuts = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
    image = torch.zeros(1, height, width, 1)
    for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
        image[:, rows, columns] = number
    region = window_partition(image, (size, size)).squeeze(-1)
    expected = region[:, None, :, None] == region[:, None, None, :]
    assert torch.equal(shifted_window_mask(height, width, (size, size), (shift, shift)), expected)


@pytest.mark.parametrize("shift", [(0, 0), (2, 1)])
@pytest.mark.parametrize("window", [(4, 4), (4, 3)])
def test_attention_over_windows(window: tuple[int, int], shift: tuple[int, int]) -> None:
    """The mask repeats over the batch, the bias is shared: window by window in float64."""
    torch.manual_seed(0)
    height, width, heads, dim, images = 8, 12, 3, 8, 2
    inside = window[0] * window[1]
    image = torch.randn(images, height, width, 3 * heads * dim, dtype=torch.float64)
    image.requires_grad_()
    rolled = torch.roll(image, (-shift[0], -shift[1]), (1, 2))
    windows = window_partition(rolled, window)
    query, key, value = windows.view(-1, inside, 3, heads, dim).permute(2, 0, 3, 1, 4)
    position = WindowPositionBias(window, heads, dtype=torch.float64)
    mask = shifted_window_mask(height, width, window, shift)
    out, _ = torch.ops.fulgurite.attention(query, key, value, bias=position(), mask=mask)

    places = [(y, x) for y in range(window[0]) for x in range(window[1])]
    rows = [
        [(y - v + window[0] - 1) * (2 * window[1] - 1) + x - u + window[1] - 1 for v, u in places]
        for y, x in places
    ]
    bias = position.table[torch.tensor(rows)].permute(2, 0, 1)
    kept = neighbours(height, width, window, shift)
    expected = []
    for item in range(len(windows)):
        scores = query[item] @ key[item].transpose(-1, -2) * dim**-0.5 + bias
        scores = scores.masked_fill(~kept[item % len(kept)], -torch.inf)
        expected.append(scores.softmax(-1) @ value[item])
    reference = torch.stack(expected)
    torch.testing.assert_close(out, reference, rtol=1e-12, atol=1e-13)
    wanted = [image, position.table]
    incoming = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, wanted, incoming, retain_graph=True),
        torch.autograd.grad(reference, wanted, incoming),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_functions_scripted() -> None:
    @torch.jit.script
    def there_and_back(x: Tensor, window: tuple[int, int]) -> Tensor:
        windows = window_partition(x, window)
        return window_reverse(windows, window, x.size(1), x.size(2))

    x = torch.randn(2, 4, 6, 3)
    assert torch.equal(there_and_back(x, (2, 3)), x)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"partition: .* window \(2, 4\), got \(4, 6\)"):
        window_partition(torch.zeros(1, 4, 6, 1), (2, 4))
    with pytest.raises(ValueError, match=r"window_partition: expected .* got \[4, 6, 1\]"):
        window_partition(torch.zeros(4, 6, 1), (2, 2))
    with pytest.raises(
        ValueError, match=r"window_reverse: expected window_size\[0\] of at least 1, got 0"
    ):
        window_reverse(torch.zeros(6, 4, 1), (0, 2), 4, 6)
    for wrong in ((5, 4, 1), (6, 3, 1), (6, 4)):
        with pytest.raises(ValueError, match=r"expected windows of shape \[B·6, 4, C\]"):
            window_reverse(torch.zeros(wrong), (2, 2), 4, 6)
    with pytest.raises(ValueError, match=r"shifted_window_mask: .* window \(2, 2\), got \(3, 4\)"):
        shifted_window_mask(3, 4, (2, 2), (1, 1))
    for shift in ((2, 0), (0, -1)):
        with pytest.raises(
            ValueError, match=r"_mask: expected (a shift below|shift.1. of at least 0)"
        ):
            shifted_window_mask(4, 4, (2, 2), shift)
