"""adamw_ against the vector loop of torch's fused CPU kernel, bit by bit, and against itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from common_checks import DEVICE, assert_same_bits, scattered, threads
from fulgurite.testing.backend import backends, using
from fulgurite.testing.samples.optim import Lists
from ulp_distance import ulps

LR, BETA1, BETA2, EPS, WEIGHT_DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01


def hyper(*rows: tuple[float, ...]) -> Tensor:
    rows = rows or ((LR, BETA1, BETA2, EPS, WEIGHT_DECAY, 0.0),)
    return torch.tensor(rows, dtype=torch.float64)


def run(lists: Lists, **options: Any) -> dict[str, Tensor]:
    """The lists after a step; the ones given stay as they are."""
    names = (
        "params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "masters", "copies",
        "emas", "steps",
    )  # fmt: skip
    written = {name: [t.clone() for t in getattr(lists, name)] for name in names}
    torch.ops.fulgurite.adamw_(*lists.args(**written), **options)
    return {f"{name}[{i}]": t for name in names for i, t in enumerate(written[name])}


class Pair:
    """One parameter in torch's optimizer and in ours."""

    def __init__(self, p: Tensor, torch_optimizer: type[torch.optim.Adam], **options: Any) -> None:
        self.plain = torch.nn.Parameter(p.clone())
        self.optimizer = torch_optimizer([self.plain], lr=LR, weight_decay=WEIGHT_DECAY, **options)
        self.p, self.m, self.v = p.clone(), torch.zeros_like(p), torch.zeros_like(p)
        self.vmax = torch.zeros_like(p)
        self.step = torch.zeros(())
        self.options = {
            "decoupled": torch_optimizer is torch.optim.AdamW,
            "amsgrad": options.get("amsgrad", False),
            "maximize": options.get("maximize", False),
        }

    def update(self, grad: Tensor) -> None:
        self.plain.grad = grad.clone()
        self.optimizer.step()
        vmax = [self.vmax] if self.options["amsgrad"] else []
        torch.ops.fulgurite.adamw_(
            [self.p], [grad], [self.m], [self.v], vmax, [], [], [], [self.step], hyper(), [0],
            **self.options,
        )  # fmt: skip

    def ours(self) -> dict[str, Tensor]:
        return {"p": self.p, "m": self.m, "v": self.v}

    def torchs(self) -> dict[str, Tensor]:
        state = self.optimizer.state[self.plain]
        return {"p": self.plain.detach(), "m": state["exp_avg"], "v": state["exp_avg_sq"]}


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_bits_of_torchs_vector_loop(
    isa: str, optimizer: type, amsgrad: bool, maximize: bool
) -> None:
    """1024 elements are whole vectors everywhere, so that torch's scalar tail has no part in it.

    (In float64 the step's scalars already differ: torch takes powers by pow.)
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1024, generator=generator)
    pair = Pair(start, optimizer, fused=True, amsgrad=amsgrad, maximize=maximize)
    for t in range(1, 101):
        pair.update(torch.randn(1024, generator=generator) * 1e-3)
        if t in (1, 2, 10, 100):
            assert_same_bits(pair.ours(), pair.torchs(), f"step {t}")


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adam])
def test_float64_is_torchs(isa: str, optimizer: type) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(519, generator=generator, dtype=torch.float64)
    pair = Pair(start, optimizer, fused=True)
    for _ in range(100):
        pair.update(torch.randn(519, generator=generator, dtype=torch.float64) * 1e-3)
    for name, expected in pair.torchs().items():
        assert torch.allclose(pair.ours()[name], expected, rtol=1e-12, atol=1e-16), name


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adam])
def test_distance_to_torch_over_1000_steps(fused: bool, optimizer: type) -> None:
    """A size that ends in torch's scalar tail, and its foreach implementation: ulps, not bits."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(519, generator=generator) * 0.02
    options = {"fused": True} if fused else {"foreach": True}
    pair = Pair(start, optimizer, **options)
    for t in range(1, 1001):
        pair.update(torch.randn(519, generator=generator) * 1e-3)
        if t not in (1, 100, 1000):
            continue
        ours, torchs = pair.ours(), pair.torchs()
        assert ulps(ours["m"], torchs["m"]) <= (3 if optimizer is torch.optim.AdamW else 40)
        assert ulps(ours["v"], torchs["v"]) <= 40
        size = torch.maximum(ours["p"].abs(), start.abs()).clamp(min=LR)
        assert ((ours["p"] - torchs["p"]).abs() <= 4e-5 * size).all()


def test_rms_error_is_at_most_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(4096, generator=generator) * 0.02
    pair = Pair(start, torch.optim.AdamW, foreach=True)
    wide = Pair(start.double(), torch.optim.AdamW)
    for _ in range(1000):
        grad = torch.randn(4096, generator=generator) * 1e-3
        pair.update(grad)
        wide.update(grad.double())
    for name, exact in wide.torchs().items():
        ours = (pair.ours()[name].double() - exact).square().mean().sqrt()
        torchs = (pair.torchs()[name].double() - exact).square().mean().sqrt()
        assert ours <= 1.3 * torchs, name


def test_any_tail_has_the_bits_of_the_whole(isa: str) -> None:
    """Elements do not know their neighbours: sizes 0 … 63 against one tensor of 64."""
    whole = run(Lists([(64,)], torch.float32, DEVICE, 3))
    for n in range(64):
        part = Lists([(64,)], torch.float32, DEVICE, 3)
        for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
            setattr(part, name, [tensor[:n].clone() for tensor in getattr(part, name)])
        for label, tensor in run(part).items():
            assert torch.equal(tensor, whole[label][:n] if tensor.dim() else whole[label]), (
                n,
                label,
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_alone_or_in_a_list_and_on_any_number_of_threads(isa: str, dtype: torch.dtype) -> None:
    shapes = [(3,), (70001,), (0,), (128, 129), (1,), (16384,), (5, 5)]
    lists = Lists(shapes, dtype, DEVICE, 4)
    with threads(1):
        together = run(lists)
    for count in (2, 3):
        with threads(count):
            assert_same_bits(run(lists), together, f"{count} threads")
    for i in range(len(shapes)):
        one = Lists(shapes, dtype, DEVICE, 4)
        for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps", "groups"):
            setattr(one, name, [getattr(one, name)[i]])
        for label, tensor in run(one).items():
            assert torch.equal(tensor, together[label.replace("[0]", f"[{i}]")]), label


def test_instruction_sets_agree(isa: str) -> None:
    generator = torch.Generator().manual_seed(5)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        lists = Lists(
            [(517,), (3, 11)], dtype, DEVICE, int(torch.randint(99, (), generator=generator))
        )
        lists.emas = [m.clone() for m in lists.exp_avgs]
        lists.max_exp_avg_sqs = [v.clone() for v in lists.exp_avg_sqs]
        if dtype == torch.bfloat16:
            lists.masters = [torch.full(p.shape, 77, dtype=torch.int16) for p in lists.params]
        for options in ({}, {"decoupled": False, "amsgrad": True}):
            here = run(lists, **options)
            with using(backends()[0].set):
                baseline = run(lists, **options)
            assert_same_bits(here, baseline, f"{dtype} {options}")


@pytest.mark.parametrize("split", [False, True])
def test_strides_pair_elements_by_index(isa: str, split: bool) -> None:
    """Operands of one tensor in different layouts: torch's fused kernel pairs them by memory."""
    shape = (6, 35, 4)
    lists = Lists([shape], torch.bfloat16 if split else torch.float32, DEVICE, 6)
    if split:
        lists.masters = [torch.randint(-9999, 9999, shape, dtype=torch.int16)]
    dense = run(lists)
    layouts = {
        "transposed gradient": ("grads", lambda t: t.transpose(0, 2).contiguous().transpose(0, 2)),
        "expanded gradient": ("grads", lambda t: t[:1].expand(shape)),
        "scattered parameter": ("params", scattered),
        "permuted moment": ("exp_avgs", lambda t: t.permute(1, 2, 0).contiguous().permute(2, 0, 1)),
        "scattered second moment": ("exp_avg_sqs", scattered),
    }
    if split:
        layouts["scattered master"] = ("masters", scattered)
    for name, (field, change) in layouts.items():
        values = {
            key: getattr(lists, key)
            for key in ("params", "grads", "exp_avgs", "exp_avg_sqs", "masters")
        }
        before = dense
        if name == "expanded gradient":
            lists.grads = [change(lists.grads[0]).contiguous()]
            before = run(lists)
        written = {key: [t.clone() for t in tensors] for key, tensors in values.items()}
        written[field] = [change(values[field][0])]
        torch.ops.fulgurite.adamw_(*lists.args(**written, steps=[lists.steps[0].clone()]))
        for key in ("params", "exp_avgs", "exp_avg_sqs", *(("masters",) if split else ())):
            assert torch.equal(written[key][0], before[f"{key}[0]"]), (name, key)
        lists.grads = values["grads"]


def test_all_dense_orders_are_walked_as_memory(isa: str) -> None:
    lists = Lists([(4, 6, 5)], torch.float32, DEVICE, 7)
    dense = run(lists)
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
        setattr(
            lists,
            name,
            [t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for t in getattr(lists, name)],
        )
    for label, tensor in run(lists).items():
        assert torch.equal(tensor, dense[label]), label


@pytest.mark.parametrize("value", [1.0, 2.0, 0.5, math.inf])
def test_an_overflow_changes_nothing(value: float) -> None:
    lists = Lists([(7,), (30, 3)], torch.bfloat16, DEVICE, 8)
    lists.masters = [torch.zeros(p.shape, dtype=torch.int16) for p in lists.params]
    lists.copies = [p.float() for p in lists.params]
    lists.emas = [m.clone() for m in lists.exp_avgs]
    before = {k: v.clone() for k, v in run(lists, found_inf=torch.tensor(1.0)).items()}
    after = run(
        lists,
        found_inf=torch.tensor(value),
        grad_multiplier=torch.tensor(math.nan),
        zero_grads=True,
    )
    assert_same_bits(after, before)
    assert torch.equal(after["params[1]"], lists.params[1])
    assert torch.equal(after["steps[1]"], lists.steps[1])
    assert torch.equal(after["grads[0]"], lists.grads[0])


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sixteen_bits_are_the_float32_step_rounded_once(
    isa: str, dtype: torch.dtype, grad_dtype: torch.dtype
) -> None:
    lists = Lists([(301,)], dtype, DEVICE, 9, grad_dtype=grad_dtype)
    low = run(lists)
    lists.params = [p.float() for p in lists.params]
    lists.grads = [g.float() for g in lists.grads]
    wide = run(lists)
    for label in ("exp_avgs[0]", "exp_avg_sqs[0]"):
        assert torch.equal(low[label], wide[label])
    assert torch.equal(low["params[0]"], wide["params[0]"].to(dtype))


def test_moments_in_bfloat16_do_not_reach_the_update(isa: str) -> None:
    """Stored to nearest; the parameter moves by the unrounded ones."""
    lists = Lists([(301,)], torch.float32, DEVICE, 10, moment_dtype=torch.bfloat16)
    low = run(lists)
    lists.exp_avgs = [m.float() for m in lists.exp_avgs]
    lists.exp_avg_sqs = [v.float() for v in lists.exp_avg_sqs]
    wide = run(lists)
    assert torch.equal(low["params[0]"], wide["params[0]"])
    assert torch.equal(low["exp_avgs[0]"], wide["exp_avgs[0]"].bfloat16())
    assert torch.equal(low["exp_avg_sqs[0]"], wide["exp_avg_sqs[0]"].bfloat16())


def test_masters_copies_and_averages(isa: str) -> None:
    """Both masters take the same steps; parameters, copies and averages follow them."""
    wide = Lists([(517,)], torch.float32, DEVICE, 11)
    high, low = torch.ops.fulgurite.split_master(wide.params[0])
    full = Lists([(517,)], torch.bfloat16, DEVICE, 11)
    full.grads = wide.grads
    full.masters = [wide.params[0]]
    full.copies = [torch.zeros(517, dtype=torch.float16)]
    full.emas = [wide.exp_avgs[0].clone()]
    split = Lists([(517,)], torch.bfloat16, DEVICE, 11)
    split.grads = wide.grads
    split.params, split.masters = [high], [low]
    expected, with_master, halves = run(wide), run(full), run(split)
    p = expected["params[0]"]
    assert torch.equal(with_master["masters[0]"], p)
    assert torch.equal(with_master["params[0]"], p.bfloat16())
    assert torch.equal(with_master["copies[0]"], p.half())
    ema_weight = torch.tensor(1 - wide.hyper[0, 5].item()).float()
    assert torch.equal(with_master["emas[0]"], full.emas[0] + ema_weight * (p - full.emas[0]))
    assert torch.equal(
        torch.ops.fulgurite.join_master(halves["params[0]"], halves["masters[0]"]), p
    )
    assert torch.equal(halves["exp_avgs[0]"], expected["exp_avgs[0]"])


def test_entries_without_elements_mean_none() -> None:
    lists = Lists([(5,), (6,)], torch.bfloat16, DEVICE, 12)
    plain = run(lists)
    lists.masters = [torch.empty(0), lists.params[1].float()]
    lists.copies = [torch.empty(2, 0, dtype=torch.int64), torch.zeros(6)]
    mixed = run(lists)
    assert torch.equal(mixed["params[0]"], plain["params[0]"])
    assert torch.equal(mixed["copies[1]"], mixed["masters[1]"])


def test_gradients_are_zeroed_only_when_asked() -> None:
    lists = Lists([(5,), (40, 3)], torch.float32, DEVICE, 13)
    assert torch.equal(run(lists)["grads[1]"], lists.grads[1])
    zeroed = run(lists, zero_grads=True)
    assert not zeroed["grads[0]"].any()
    assert not zeroed["grads[1]"].any()
    assert torch.equal(zeroed["params[1]"], run(lists)["params[1]"])


def test_a_nan_gradient_stays_in_its_element() -> None:
    lists = Lists([(67,)], torch.float32, DEVICE, 14)
    plain = run(lists)
    lists.grads[0][66] = math.nan
    poisoned = run(lists)
    for name in ("params[0]", "exp_avgs[0]", "exp_avg_sqs[0]"):
        assert poisoned[name][66].isnan()
        assert torch.equal(poisoned[name][:66], plain[name][:66])


def test_a_leaf_is_not_written_while_gradients_are_recorded() -> None:
    lists = Lists([(3,)], torch.float32, DEVICE, 15)
    lists.params[0].requires_grad_()
    before = lists.params[0].detach().clone()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        torch.ops.fulgurite.adamw_(*lists.args())
    lists.params = [lists.params[0] * 1]
    with pytest.raises(NotImplementedError, match=r"adamw_: has no gradient"):
        torch.ops.fulgurite.adamw_(*lists.args())
    assert torch.equal(lists.params[0], before)
    with torch.no_grad():
        torch.ops.fulgurite.adamw_(*lists.args())
    assert not torch.equal(lists.params[0], before)


def test_steps_count_beyond_a_million() -> None:
    """Bias corrections by squaring stay right: 1 − 0.9999999^t in float64."""
    lists = Lists([(4,)], torch.float64, DEVICE, 16)
    lists.hyper = hyper((LR, 0.999999, 0.9999999, EPS, 0.0, 0.0))
    lists.steps = [torch.tensor(3.0e6)]
    t = 3_000_001
    new = run(lists)
    m = 0.999999 * lists.exp_avgs[0] + 1e-6 * lists.grads[0]
    v = 0.9999999 * lists.exp_avg_sqs[0] + 1e-7 * lists.grads[0] ** 2
    step = LR * (m / (1 - 0.999999**t)) / ((v / (1 - 0.9999999**t)).sqrt() + EPS)
    assert torch.allclose(new["params[0]"], lists.params[0] - step, rtol=1e-9, atol=0)
    assert new["steps[0]"].item() == t
