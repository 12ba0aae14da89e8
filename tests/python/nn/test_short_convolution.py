"""fulgurite.nn.ShortConvolution against torch.nn.Conv1d, whose weights it loads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fulgurite.nn import ShortConvolution


def pair(width: int, activation: str, bias: bool) -> tuple[ShortConvolution, nn.Conv1d]:
    torch.manual_seed(0)
    plain = nn.Conv1d(6, 6, width, groups=6, padding=width - 1, bias=bias).double()
    module = ShortConvolution(6, width, activation=activation, bias=bias).double()
    module.load_state_dict(plain.state_dict())
    return module, plain


@pytest.mark.parametrize("activation", ["silu", "none"])
@pytest.mark.parametrize(("width", "bias"), [(1, False), (4, True), (7, False)])
def test_output_and_gradients(width: int, activation: str, bias: bool) -> None:
    module, plain = pair(width, activation, bias)
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    expected = plain(x.transpose(1, 2))[..., :9].transpose(1, 2)
    if activation == "silu":
        expected = nn.functional.silu(expected)
    out = module(x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    incoming = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, [x, *module.parameters()], incoming),
        torch.autograd.grad(expected, [x, *plain.parameters()], incoming),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_the_first_weights_are_those_of_conv1d() -> None:
    torch.manual_seed(3)
    plain = nn.Conv1d(6, 6, 4, groups=6)
    torch.manual_seed(3)
    module = ShortConvolution(6, bias=True)
    for name, p in plain.named_parameters():
        assert torch.equal(module.get_parameter(name), p), name


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pieces_have_the_bits_of_the_whole(dtype: torch.dtype, scripted: bool) -> None:
    module = ShortConvolution(6, 4, bias=True, dtype=dtype)
    steps = torch.jit.script(module) if scripted else module
    x = torch.randn(2, 9, 6, dtype=dtype)
    with torch.no_grad():
        cache = steps.make_cache(2)
        assert cache.shape == (2, 6, 3)
        pieces = [steps.step(part, cache) for part in x.split([4, 1, 1, 0, 3], 1)]
        assert torch.equal(torch.cat(pieces, 1), module(x))
    assert torch.equal(cache, x[:, -3:].transpose(1, 2))


def test_packed_sequences_do_not_see_each_other() -> None:
    module = ShortConvolution(6)
    x = torch.randn(1, 9, 6)
    packed = module(x, torch.tensor([0, 2, 2, 9]))
    alone = [module(part) for part in x.split([2, 7], 1)]
    assert torch.equal(packed, torch.cat(alone, 1))


def test_errors() -> None:
    module = ShortConvolution(6)
    with pytest.raises(ValueError, match="activation of none, silu, got 'relu'"):
        ShortConvolution(6, activation="relu")
    for wrong in (torch.randn(9, 6), torch.randn(2, 9, 5)):
        with pytest.raises(RuntimeError, match=r"x of shape \[B, L, 6\], got"):
            module(wrong)
    with pytest.raises(ValueError, match="batch of at least 0, got -1"):
        module.make_cache(-1)
    cache: Tensor = torch.randn(2, 6, 3)
    before = cache.clone()
    with pytest.raises(RuntimeError, match="ShortConvolution: expected step without gradients"):
        module.step(torch.randn(2, 1, 6), cache)
    with torch.no_grad(), pytest.raises(RuntimeError, match="initial_state of shape"):
        module.step(torch.randn(1, 1, 6), cache)
    assert torch.equal(cache, before)
