"""torch.utils.flop_counter counts our operators as it counts torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from fulgurite._flops import FORMULAS, register

ops = torch.ops.fulgurite
B, H, HKV, N, M, D, DV = 2, 6, 3, 5, 7, 8, 4
PAIRS = B * H * N * M


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def qkv() -> list[Tensor]:
    return leaves((B, H, N, D), (B, HKV, M, D), (B, HKV, M, DV))


def test_every_operator_that_multiplies_matrices_has_a_formula() -> None:
    """The others: routing, sums and updates, elementwise or sorting."""
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names()
             if name.startswith("fulgurite::")}  # fmt: skip
    families = ("attention", "moe_experts", "moe_grouped_mm", "linear_attention")
    multiply = {name for name in names if name.lstrip("_").startswith(families)}
    others = {"attention_merge", "_attention_merge_backward", "_attention_dropout_keep"}
    assert multiply - others == set(FORMULAS)


def test_attention_as_sdpa() -> None:
    """Forward and backward of torch's memory-efficient route, whose formula is the same product by
    product; a mask changes nothing."""
    q, k, v = leaves(*[(B, H, M, D)] * 3)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = counted(lambda: scaled_dot_product_attention(q, k, v))
    assert counted(lambda: ops.attention(q, k, v)) == theirs == 4 * B * H * M * M * D
    assert counted(lambda: ops.attention(q, k, v, causal=True, window_left=1)) == theirs


def test_attention_forward_and_backward() -> None:
    inputs = qkv()
    assert counted(lambda: ops.attention(*inputs)) == 2 * PAIRS * (D + DV)

    def train() -> None:
        ops.attention(*inputs)[0].sum().backward()

    assert counted(train) == 2 * PAIRS * (D + DV) + 2 * PAIRS * (3 * D + 2 * DV)


def test_attention_twice_differentiated() -> None:
    """In D: scores, their derivative, which is two products, and two for each gradient of query and
    key. In Dv: two for the gradients of the weights, two for that of grad_out, one for value's."""
    inputs = qkv()
    (grad_out,) = leaves((B, H, N, DV))

    def first() -> tuple[Tensor, ...]:
        out = ops.attention(*inputs)[0]
        return torch.autograd.grad(out, inputs, grad_out, create_graph=True)

    def second() -> None:
        sum(g.square().sum() for g in first()).backward()

    double = 2 * PAIRS * ((3 + 2 + 2) * D + (2 + 2 + 1) * DV)
    assert counted(second) - counted(first) == double


def test_packed_sequences_count_their_own_pairs() -> None:
    starts = torch.tensor([0, 2, 2, 9])
    q, k, v = leaves((9, H, D), (9, HKV, D), (9, HKV, DV))
    pairs = H * (2 * 2 + 0 + 7 * 7)
    assert counted(lambda: ops.attention_varlen(q, k, v, starts, starts)) == 2 * pairs * (D + DV)

    def train() -> None:
        ops.attention_varlen(q, k, v, starts, starts)[0].sum().backward()

    assert counted(train) == 2 * pairs * (4 * D + 3 * DV)
    with FakeTensorMode() as fake:
        moved = [fake.from_tensor(x) for x in (q, k, v, starts, starts)]
        count = counted(lambda: ops.attention_varlen(*moved))
    assert count == 2 * H * 9 * 9 * (D + DV)


def test_decoding_counts_what_the_cache_holds() -> None:
    query = torch.randn(B, H, 1, D)
    key, value = torch.randn(B, HKV, 16, D), torch.randn(B, HKV, 16, DV)
    lens = torch.tensor([16, 3])
    expected = 2 * H * (16 + 3) * (D + DV)
    assert counted(lambda: ops.attention_decode(query, key, value, lens)) == expected
    pages = [x.view(B, HKV, 4, 4, -1).transpose(1, 2).flatten(0, 1) for x in (key, value)]
    table = torch.arange(8, dtype=torch.int32).view(B, 4)
    assert counted(lambda: ops.attention_decode(query, *pages, lens, page_table=table)) == expected
    with FakeTensorMode() as fake:
        moved = [fake.from_tensor(x) for x in (query, *pages, lens, table)]
        count = counted(lambda: ops.attention_decode(*moved[:4], page_table=moved[4]))
    assert count == 2 * H * B * 16 * (D + DV)


T, K, E, WIDTH, HIDDEN = 9, 2, 4, 8, 6


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("save_hidden", [True, False])
def test_experts(gated: bool, transposed: bool, save_hidden: bool) -> None:
    """Three times the forward for a training step, and the first product again where gate and up
    are not saved."""
    first = 2 * HIDDEN if gated else HIDDEN
    w_in, w_out = (E, first, WIDTH), (E, WIDTH, HIDDEN)
    if transposed:
        w_in, w_out = (E, WIDTH, first), (E, HIDDEN, WIDTH)
    inputs = leaves((T, WIDTH), (T, K), w_in, w_out)
    ids = torch.rand(T, E).topk(K)[1].int()

    def forward() -> Tensor:
        x, weights, w_in, w_out = inputs
        options = {"gated": gated, "transposed": transposed, "save_hidden": save_hidden}
        return ops.moe_experts(x, ids, weights, w_in, w_out, **options)

    once = 2 * T * K * (WIDTH * first + WIDTH * HIDDEN)
    again = 0 if save_hidden else 2 * T * K * WIDTH * first
    assert counted(forward) == once
    assert counted(lambda: forward().sum().backward()) == 3 * once + again
    with torch.no_grad():
        assert counted(forward) == once


def test_experts_count_the_gradients_asked_for() -> None:
    x, weights, w_in, w_out = leaves((T, WIDTH), (T, K), (E, 2 * HIDDEN, WIDTH), (E, WIDTH, HIDDEN))
    ids = torch.rand(T, E).topk(K)[1].int()
    unit = 2 * T * K * WIDTH * HIDDEN
    for wanted, products in (([x], 1 + 2), ([w_out], 1), ([w_in], 1 + 2), ([weights], 1)):
        out = ops.moe_experts(x, ids, weights, w_in, w_out)
        grads = counted(lambda: torch.autograd.grad(out.sum(), wanted))  # noqa: B023
        assert grads == products * unit


def test_grouped_mm() -> None:
    x, weight = leaves((T, WIDTH), (E, HIDDEN, WIDTH))
    offsets = torch.tensor([0, 2, 2, 5, T])
    once = 2 * T * WIDTH * HIDDEN
    assert counted(lambda: ops.moe_grouped_mm(x, weight, offsets)) == once
    assert counted(lambda: ops.moe_grouped_mm(x, weight, offsets).sum().backward()) == 3 * once
    plain = x.detach()
    assert counted(lambda: ops.moe_grouped_mm(plain, weight, offsets).sum().backward()) == 2 * once


def test_linear_attention_counts_its_state() -> None:
    q, k, v = leaves((B, HKV, N, D), (B, HKV, N, D), (B, H, N, DV))
    once = 2 * B * H * N * D * DV
    plain = [t.detach() for t in (q, k, v)]
    assert counted(lambda: ops.linear_attention(*plain)) == 2 * once
    assert counted(lambda: ops.linear_attention(q, k, v)[0].sum().backward()) == 7 * once


def test_elementwise_operators_count_nothing() -> None:
    logits = torch.randn(T, E)
    assert counted(lambda: ops.moe_route(logits, K)) == 0


def test_importing_registers_each_formula_once() -> None:
    """Torch makes a second registration an error."""
    formulas = [flop_registry[getattr(ops, name)] for name in FORMULAS]
    register()
    assert formulas == [flop_registry[getattr(ops, name)] for name in FORMULAS]
