"""Swin's window bias, v1 and v2, entry by entry."""

import copy
import io
import math

import pytest
import torch
from torch import Tensor

import fulgurite.nn.functional as F
from common_checks import DEVICE
from fulgurite.nn import (
    ContinuousPositionBias,
    WindowPositionBias,
    log_spaced_coordinates,
    window_position_index,
)

WINDOWS = [(7, 7), (3, 5), (1, 4), (4, 1), (1, 1)]


def offsets(window: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """Query's minus key's row and column, for every pair."""
    places = [(y, x) for y in range(window[0]) for x in range(window[1])]
    return [[(y - v, x - u) for v, u in places] for y, x in places]


@pytest.mark.parametrize("window", WINDOWS)
def test_index(window: tuple[int, int]) -> None:
    rows, columns = window
    expected = [
        [(dy + rows - 1) * (2 * columns - 1) + dx + columns - 1 for dy, dx in line]
        for line in offsets(window)
    ]
    index = window_position_index(window)
    assert index.dtype == torch.int64
    assert index.tolist() == expected
    assert index.unique().tolist() == list(range((2 * rows - 1) * (2 * columns - 1)))


def spaced(offset: int, side: int) -> float:
    x = offset / (side - 1) if side > 1 else 0.0
    return math.copysign(math.log2(1 + 8 * abs(x)) / math.log2(8), x) if x else 0.0


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("trained", [None, (6, 6), (2, 1)])
def test_coordinates(window: tuple[int, int], trained: tuple[int, int] | None) -> None:
    coordinates = log_spaced_coordinates(window, trained)
    index = window_position_index(window)
    sides = window if trained is None else trained
    for i, line in enumerate(offsets(window)):
        for j, (dy, dx) in enumerate(line):
            # A side of 1 divides by 1, so that a larger window than trained stays finite.
            expected = [
                spaced(offset, max(side, 2)) for offset, side in zip((dy, dx), sides, strict=True)
            ]
            assert coordinates[index[i, j]].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("window", WINDOWS)
def test_table_bias(window: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = WindowPositionBias(window, 3, dtype=torch.float64)
    bias = module()
    inside, columns = window[0] * window[1], window[1]
    assert bias.shape == (1, 3, inside, inside)
    counts = torch.zeros_like(module.table)
    incoming = torch.randn_like(bias)
    for i, line in enumerate(offsets(window)):
        for j, (dy, dx) in enumerate(line):
            row = (dy + window[0] - 1) * (2 * columns - 1) + dx + columns - 1
            assert torch.equal(bias[0, :, i, j], module.table[row])
            counts[row] += incoming[0, :, i, j]
    (gradient,) = torch.autograd.grad(bias, module.table, incoming)
    torch.testing.assert_close(gradient, counts, rtol=1e-12, atol=1e-12)


def network(module: ContinuousPositionBias, coordinates: list[float]) -> Tensor:
    x = torch.tensor(coordinates, dtype=torch.float64)
    hidden = (module.hidden.weight @ x + module.hidden.bias).clamp(min=0)
    return 16 / (1 + (-(module.out.weight @ hidden)).exp())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [None, (5, 4)])
def test_continuous_bias(dtype: torch.dtype, trained: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    window = (3, 2)
    module = ContinuousPositionBias(window, 2, trained, hidden_dim=11).to(dtype)
    exact = copy.deepcopy(module).double()
    bias = module()
    sides = window if trained is None else trained
    rows = [
        torch.stack(
            [network(exact, [spaced(dy, sides[0]), spaced(dx, sides[1])]) for dy, dx in line]
        )
        for line in offsets(window)
    ]
    expected = torch.stack(rows).permute(2, 0, 1)[None]
    assert bias.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(bias.double(), expected, rtol=1e-6, atol=1e-6)
    incoming = torch.randn_like(bias)
    tolerance = 2.0**-8 if dtype == torch.bfloat16 else 1e-5
    for got, want in zip(
        torch.autograd.grad(bias, list(module.parameters()), incoming),
        torch.autograd.grad(expected, list(exact.parameters()), incoming.double()),
        strict=True,
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=1e-4)


def test_continuous_bias_of_a_larger_window_extends_the_trained_one() -> None:
    """With the trained window given, an offset keeps its bias in a window of any size."""
    torch.manual_seed(0)
    small = ContinuousPositionBias((3, 3), 2)
    large = ContinuousPositionBias((5, 5), 2, (3, 3))
    large.load_state_dict(small.state_dict())
    inside = [5 * y + x for y in range(3) for x in range(3)]
    torch.testing.assert_close(large()[:, :, inside][..., inside], small())


def test_continuous_bias_in_cosine_attention() -> None:
    """Swin v2: unit queries and keys, a learned logit scale, this bias."""
    torch.manual_seed(0)
    module = ContinuousPositionBias((4, 4), 3).double()
    query, key, value = torch.randn(3, 5, 3, 16, 8, dtype=torch.float64)
    query, key = (
        torch.nn.functional.normalize(query, dim=-1),
        torch.nn.functional.normalize(key, dim=-1),
    )
    logit_scale = torch.tensor([1.0, 5.0, 10.0], dtype=torch.float64).view(3, 1, 1)
    out = F.attention(query * logit_scale, key, value, bias=module(), scale=1.0)
    scores = query @ key.transpose(-1, -2) * logit_scale + module()
    torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-11, atol=1e-12)


def test_autocast_does_not_round_the_bias() -> None:
    module = ContinuousPositionBias((4, 4), 3)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert torch.equal(module(), module())
        inside = module()
    assert torch.equal(inside, module())


@pytest.mark.parametrize(
    "module",
    [WindowPositionBias((3, 2), 4), ContinuousPositionBias((3, 2), 4, (5, 5), hidden_dim=8)],
    ids=["table", "continuous"],
)
def test_scripted_saved_loaded_compiled(module: torch.nn.Module) -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    for made in (
        torch.jit.load(file),
        torch.compile(module, fullgraph=True, backend="aot_eager"),
    ):
        torch.testing.assert_close(made(), module())


def test_state_is_the_parameters_alone() -> None:
    assert list(WindowPositionBias((3, 2), 4).state_dict()) == ["table"]
    assert list(ContinuousPositionBias((3, 2), 4).state_dict()) == [
        "hidden.weight",
        "hidden.bias",
        "out.weight",
    ]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"position_index: expected window_size\[0\] .* got 0"):
        window_position_index((0, 2))
    with pytest.raises(
        ValueError, match=r"coordinates: expected pretrained_window_size\[1\] .* got 0"
    ):
        log_spaced_coordinates((2, 2), (2, 0))
    with pytest.raises(ValueError, match=r"WindowPositionBias: expected window_size.* got -1"):
        WindowPositionBias((2, -1), 3)
    with pytest.raises(ValueError, match=r"WindowPositionBias: expected num_heads .* got 0"):
        WindowPositionBias((2, 2), 0)
    with pytest.raises(
        ValueError, match=r"ContinuousPositionBias: expected num_heads of at least 1, got 0"
    ):
        ContinuousPositionBias((2, 2), 0)
    with pytest.raises(
        ValueError, match=r"ContinuousPositionBias: expected pretrained_window_size\[0\] .* got 0"
    ):
        ContinuousPositionBias((2, 2), 1, (0, 4))
