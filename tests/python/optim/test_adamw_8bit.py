"""adamw_8bit_: its codes against brute force, and its steps against adamw_."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common_checks import DEVICE, assert_same_bits, threads
from fulgurite.optim import AdamW
from fulgurite.optim._codes import dequantize, dynamic_map, memory_order, quantize
from fulgurite.testing.references import optim as reference
from fulgurite.testing.samples.optim import CodeLists, Lists

NAMES = (
    "params", "exp_avg_codes", "exp_avg_scales", "exp_avg_sq_codes", "exp_avg_sq_scales", "masters",
    "steps",
)  # fmt: skip


def run(lists: CodeLists, **options: Any) -> dict[str, Tensor]:
    """The lists after a step; the ones given stay as they are."""
    written = {name: [t.clone() for t in getattr(lists, name)] for name in NAMES}
    torch.ops.fulgurite.adamw_8bit_(*lists.args(**written), **options)
    return {f"{name}[{i}]": t for name in NAMES for i, t in enumerate(written[name])}


# ---------------------------------------------------------------- the map and its codes


@pytest.mark.parametrize("signed", [True, False])
def test_the_map(signed: bool) -> None:
    table = dynamic_map(signed)
    assert len(table) == 256
    assert (table[1:] > table[:-1]).all()
    assert torch.equal(table.double(), reference.dynamic_map(signed))
    assert table[127 if signed else 0] == 0.0
    assert table[255] == 1.0
    # The ends of the smallest and the largest decade: centres of 1 and 64 parts, of 2 and 128.
    ends = [5.5e-7, 1 - 0.9 / 128] if signed else [3.25e-7, 1 - 0.9 / 256]
    assert table[[128 if signed else 1, 254]].tolist() == torch.tensor(ends).tolist()
    if signed:
        assert torch.equal(table[:127].neg().flip(0), table[128:255])


def moments_of(m: Tensor, v: Tensor | None = None) -> dict[str, Tensor]:
    """Codes and scales of a step that puts these numbers into the moments, as they are."""
    lists = CodeLists([tuple(m.shape)], torch.float32, DEVICE, 0)
    lists.grads = [m if v is None else v.sqrt()]
    lists.hyper[:, 1:3] = 0.0  # β1 = β2 = 0: m = g, v = g²
    lists.exp_avg_scales[0].zero_()
    lists.exp_avg_sq_scales[0].zero_()
    return run(lists)


def bfloat16s() -> Tensor:
    """Every finite one, as float32."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return values[values.isfinite()].float()


def brute_force(values: Tensor, scale: float, signed: bool) -> Tensor:
    """argmin_k |x/scale − map[k]| in float64, over the values of one block's scale."""
    table = dynamic_map(signed).double()
    rows = values.double() / scale
    return torch.cat([(part[:, None] - table).abs().argmin(1) for part in rows.split(4096)])


@pytest.mark.parametrize("scale", [1.0, 0.3, 2.0**-100, 1e-40, 7.0, 3e38])
def test_codes_of_all_bfloat16(isa: str, scale: float) -> None:
    """Each block has the scale as its first element; then come all numbers below it."""
    scale = float(torch.tensor(scale))
    values = bfloat16s()
    values = values[values.abs() <= scale]
    values = nn.functional.pad(values, (0, -len(values) % 255))
    blocks = torch.full((len(values) // 255, 256), scale)
    blocks[:, 1:] = values.view(-1, 255)
    found = moments_of(blocks.view(-1))
    assert (found["exp_avg_scales[0]"] == scale).all()
    codes = brute_force(blocks.view(-1), scale, True)
    assert torch.equal(found["exp_avg_codes[0]"].long(), codes)
    if scale > 1e-35:  # of subnormals there are too few for all codes
        assert sorted(set(codes.tolist())) == list(range(256))

    squares = blocks.view(-1).square()  # the second moments, rounded as the step rounds them
    own = found["exp_avg_sq_scales[0]"]
    assert torch.equal(own, squares.view(-1, 256).amax(1))
    if 0 < float(own[0]) < math.inf:
        codes = brute_force(squares, float(own[0]), False)
        assert torch.equal(found["exp_avg_sq_codes[0]"].long(), codes)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_on_both_sides_of_every_middle(isa: str, signed: bool) -> None:
    """The neighbours in float32 of each middle, at scales that round their products."""
    table = dynamic_map(signed).double()
    middles = (table[1:] + table[:-1]) / 2
    for scale in (1.0, 3.0, 0.7, 1e-3):
        scale = float(torch.tensor(scale))
        near = (middles * scale).float()
        up = torch.nextafter(near, torch.tensor(math.inf))
        down = torch.nextafter(near, torch.tensor(-math.inf))
        for values in (down, near, up):
            block = torch.cat([torch.tensor([scale]), values])
            codes, scales = quantize(block, signed, (0,))
            assert scales.tolist() == [scale]
            assert torch.equal(codes.long(), brute_force(block, scale, signed))
            if signed:
                assert torch.equal(moments_of(block)["exp_avg_codes[0]"], codes)


def test_quantizing_for_checkpoints_is_the_reference() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(6, 35, 7, generator=generator) ** 5
    for signed in (True, False):
        x = values if signed else values.abs()
        codes, scales = quantize(x, signed, memory_order(x))
        expected, expected_scales = reference.quantize(x, signed)
        assert torch.equal(codes, expected)
        assert torch.equal(scales.double(), expected_scales)
        back = dequantize(codes, scales, signed)
        assert torch.equal(back, reference.dequantize(codes, scales, signed))


def test_a_zero_block_has_scale_0_and_stays_zero(isa: str) -> None:
    m = torch.zeros(513)
    m[256] = 3.0
    found = moments_of(m)
    assert found["exp_avg_scales[0]"].tolist() == [0.0, 3.0, 0.0]
    assert found["exp_avg_sq_scales[0]"].tolist() == [0.0, 9.0, 0.0]
    assert (found["exp_avg_codes[0]"] == 127).sum() == 512
    assert (found["exp_avg_sq_codes[0]"] == 0).sum() == 512


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_block(isa: str, value: float) -> None:
    """A block shares its scale, so all of it is NaN at the next step; its neighbours are not."""
    lists = CodeLists([(700,)], torch.float32, DEVICE, 2)
    plain = run(lists)
    lists.grads[0][300] = value
    once = run(lists)
    outside = torch.cat([torch.arange(256), torch.arange(512, 700)])
    for name in ("params[0]", "exp_avg_codes[0]", "exp_avg_sq_codes[0]"):
        assert torch.equal(once[name][outside], plain[name][outside])
    keep = torch.arange(700) != 300
    assert torch.equal(once["params[0]"][keep], plain["params[0]"][keep])
    for name in NAMES[:5]:
        setattr(lists, name, [once[f"{name}[0]"]])
    lists.grads[0][300] = 1.0
    lists.params[0][300] = 1.0
    twice = run(lists)
    assert twice["params[0]"][256:512].isnan().all()
    assert twice["params[0]"][outside].isfinite().all()


# ---------------------------------------------------------------- the step is adamw_'s


def as_numbers(lists: CodeLists) -> Lists:
    """The same call of adamw_."""
    wide = Lists([], torch.float32, DEVICE, 0)
    for name in ("params", "grads", "masters", "steps", "hyper", "groups"):
        setattr(wide, name, getattr(lists, name))
    dtype = torch.float64 if lists.params[0].dtype == torch.float64 else torch.float32
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        codes, scales = getattr(lists, f"{name}_codes"), getattr(lists, f"{name}_scales")
        numbers = [dequantize(c, s, signed).to(dtype) for c, s in zip(codes, scales, strict=True)]
        setattr(wide, f"{name}s", numbers)
    return wide


@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"decoupled": False}])
@pytest.mark.parametrize("master", [None, "fp32", "split"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_update_uses_the_numbers_before_they_are_codes(
    isa: str, dtype: torch.dtype, master: str | None, options: dict[str, Any]
) -> None:
    lists = CodeLists([(700,), (9, 50), (3,)], dtype, DEVICE, 3)
    if master is not None and dtype == torch.bfloat16:
        lists.masters = [
            p.float() + 1e-3 if master == "fp32" else torch.full(p.shape, 99, dtype=torch.int16)
            for p in lists.params
        ]
    options = {**options, "grad_multiplier": torch.tensor(0.3), "seed": torch.tensor([5, 6])}
    coded = run(lists, **options)
    wide = as_numbers(lists)
    written = {
        name: [t.clone() for t in getattr(wide, name)]
        for name in ("params", "exp_avgs", "exp_avg_sqs", "masters", "steps")
    }
    torch.ops.fulgurite.adamw_(*wide.args(**written), **options)
    for i in range(3):
        assert torch.equal(coded[f"params[{i}]"], written["params"][i])
        if lists.masters:
            assert torch.equal(coded[f"masters[{i}]"], written["masters"][i])
        for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            codes, scales = quantize(written[f"{name}s"][i], signed, (0, 1)[: wide.params[i].dim()])
            assert torch.equal(coded[f"{name}_codes[{i}]"], codes)
            assert torch.equal(coded[f"{name}_scales[{i}]"], scales)
        assert coded[f"steps[{i}]"] == written["steps"][i]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_alone_or_in_a_list_and_on_any_number_of_threads(isa: str, dtype: torch.dtype) -> None:
    shapes = [(3,), (70001,), (0,), (128, 129), (1,), (16384,), (5, 5)]
    lists = CodeLists(shapes, dtype, DEVICE, 4)
    with threads(1):
        together = run(lists)
    for count in (2, 3):
        with threads(count):
            assert_same_bits(run(lists), together, f"{count} threads")
    names = [name for name in NAMES if name != "masters"]
    for i in range(len(shapes)):
        one = CodeLists(shapes, dtype, DEVICE, 4)
        for name in (*names, "grads", "groups"):
            setattr(one, name, [getattr(one, name)[i]])
        for label, tensor in run(one).items():
            assert torch.equal(tensor, together[label.replace("[0]", f"[{i}]")]), label


def test_blocks_follow_the_parameters_memory(isa: str) -> None:
    """A permuted parameter has the codes of its memory's order, whatever the other strides."""
    dense = CodeLists([(7, 11, 13)], torch.float32, DEVICE, 5)
    moved = CodeLists([(7, 11, 13)], torch.float32, DEVICE, 5)
    expected = run(dense)
    for name in ("params", "grads", "exp_avg_codes", "exp_avg_sq_codes"):
        own = getattr(moved, name)[0]
        view = own.permute(2, 0, 1)  # in memory as before; rows of codes and gradients otherwise
        setattr(moved, name, [view if name == "params" else view.contiguous()])
    for label, tensor in run(moved).items():
        want = expected[label]
        same = tensor.permute(1, 2, 0) if tensor.dim() == 3 else tensor
        assert torch.equal(same, want), label


def test_an_overflow_changes_nothing() -> None:
    lists = CodeLists([(700,)], torch.bfloat16, DEVICE, 6)
    after = run(lists, found_inf=torch.tensor(0.5), grad_multiplier=torch.tensor(math.nan))
    for name in NAMES:
        for i, before in enumerate(getattr(lists, name)):
            assert torch.equal(after[f"{name}[{i}]"], before)


# ---------------------------------------------------------------- the class


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 80), nn.GELU(), nn.Linear(80, 8)).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 64, generator=generator)
        optimizer.zero_grad()
        dtype = next(model.parameters()).dtype
        loss = (model(x.to(dtype)).float() - x[:, :8].sin()).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_small_tensors_keep_numbers() -> None:
    model = net()
    model.extra = nn.Parameter(torch.ones(4095))
    model.wide = nn.Parameter(torch.ones(4096, dtype=torch.float64))
    optimizer = AdamW(model.parameters(), state_dtype="8bit")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state[model[0].weight]
    assert state.keys() == {
        "step", "exp_avg_codes", "exp_avg_scales", "exp_avg_sq_codes", "exp_avg_sq_scales",
    }  # fmt: skip
    assert state["exp_avg_codes"].shape == model[0].weight.shape
    assert state["exp_avg_codes"].dtype == torch.uint8
    assert state["exp_avg_scales"].shape == (20,)
    for p, dtype in (
        (model[0].bias, torch.float32),
        (model.extra, torch.float32),
        (model.wide, torch.float64),
    ):
        assert optimizer.state[p]["exp_avg"].dtype == dtype


@pytest.mark.parametrize("master", [None, "fp32", "split"])
def test_it_learns(master: str | None) -> None:
    dtype = torch.float32 if master is None else torch.bfloat16
    coded, plain = net(dtype), net(dtype)
    ours = AdamW(coded.parameters(), lr=3e-3, state_dtype="8bit", master=master)
    reached = train(coded, ours, range(300))
    start = train(net(dtype), AdamW(net(dtype).parameters()), range(1))
    assert reached < 0.35 * start
    assert reached == pytest.approx(
        train(plain, AdamW(plain.parameters(), lr=3e-3, master=master), range(300)), rel=0.1
    )


@pytest.mark.parametrize(
    "through",
    [
        lambda o, p: _loaded(o, p, copy.deepcopy(o.state_dict())),
        lambda o, p: _loaded(o, p, pickle.loads(pickle.dumps(o.state_dict()))),
    ],
)
def test_checkpoints_are_exact(through: Any) -> None:
    options = {"state_dtype": "8bit", "master": "split", "max_grad_norm": 0.5}
    whole, parts = net(torch.bfloat16), net(torch.bfloat16)
    train(whole, AdamW(whole.parameters(), **options), range(8))
    half = AdamW(parts.parameters(), **options)
    train(parts, half, range(5))
    rest = through(half, AdamW(parts.parameters(), **options))
    train(parts, rest, range(5, 8))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


def _loaded(_: AdamW, optimizer: AdamW, state: dict[str, Any]) -> AdamW:
    optimizer.load_state_dict(state)
    return optimizer


@pytest.mark.parametrize("through", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copying_and_pickling(through: Any) -> None:
    model = net()
    optimizer = AdamW(model.parameters(), state_dtype="8bit")
    train(model, optimizer, range(3))
    other = through(optimizer)
    params = other.param_groups[0]["params"]
    for p, q in zip(model.parameters(), params, strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    other.step()
    for p, q in zip(model.parameters(), params, strict=True):
        assert torch.equal(p, q)


def test_numbers_become_codes_and_codes_numbers() -> None:
    model = net()
    plain = torch.optim.AdamW(model.parameters())
    train(model, plain, range(3))
    weight = model[0].weight
    numbers = plain.state[weight]["exp_avg"].clone()

    coded = AdamW(model.parameters(), state_dtype="8bit")
    coded.load_state_dict(plain.state_dict())
    state = coded.state[weight]
    assert torch.equal(state["exp_avg_codes"], quantize(numbers, True, (0, 1))[0])
    assert "exp_avg" not in state
    train(model, coded, range(3, 4))

    for dtype in (None, torch.bfloat16):
        back = AdamW(model.parameters(), state_dtype=dtype)
        back.load_state_dict(coded.state_dict())
        found = back.state[weight]["exp_avg"]
        expected = dequantize(state["exp_avg_codes"], state["exp_avg_scales"], True)
        assert torch.equal(found, expected.to(dtype or torch.float32))
        assert "exp_avg_codes" not in back.state[weight]
    torchs = torch.optim.AdamW(model.parameters())
    back = AdamW(model.parameters())
    back.load_state_dict(coded.state_dict())
    torchs.load_state_dict(back.state_dict())
    train(model, torchs, range(4, 5))


def test_codes_follow_another_memory_format() -> None:
    """A checkpoint of a contiguous weight, loaded where the weight is channels-last."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3)
    one = AdamW(conv.parameters(), state_dtype="8bit")
    for p in conv.parameters():
        p.grad = torch.randn_like(p)
    one.step()
    saved = one.state[conv.weight]
    expected = dequantize(saved["exp_avg_codes"], saved["exp_avg_scales"], True)
    moved = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    two = AdamW(moved.parameters(), state_dtype="8bit")
    two.load_state_dict(one.state_dict())
    state = two.state[moved.weight]
    assert memory_order(state["exp_avg_codes"]) == memory_order(moved.weight) == (0, 2, 3, 1)
    again = dequantize(state["exp_avg_codes"], state["exp_avg_scales"], True)
    assert torch.allclose(again, expected, rtol=0.02, atol=float(expected.abs().max()) * 0.01)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"amsgrad": True}, "amsgrad"),
        ({"ema_decay": 0.9}, "ema_decay"),
        ({"copies": [torch.ones(3)]}, "copies"),
    ],
)
def test_what_codes_do_not_go_with(options: dict[str, Any], name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{name} is not supported with state_dtype"):
        AdamW([nn.Parameter(torch.ones(3))], state_dtype="8bit", **options)


def test_amsgrad_switched_on_later_is_refused() -> None:
    model = net()
    optimizer = AdamW(model.parameters(), state_dtype="8bit")
    train(model, optimizer, range(1))
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(NotImplementedError, match="amsgrad"):
        optimizer.step()
