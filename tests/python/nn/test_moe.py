"""fulgurite.nn.MoE against a loop over tokens and experts in float64."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common_checks import DEVICE
from fulgurite.nn import MoE, aux_losses

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def hidden(module: MoE, rows: Tensor) -> Tensor:
    """The hidden layer, from what w_in gives."""
    if not module.gated:
        return ACTIVATIONS[module.activation](rows)
    gate, up = (rows[::2], rows[1::2]) if module.interleaved else rows.chunk(2)
    if module.activation != "swiglu_oai":
        return ACTIVATIONS[module.activation](gate) * up
    if module.limit > 0:
        gate, up = gate.clamp(max=module.limit), up.clamp(-module.limit, module.limit)
    return gate * torch.sigmoid(module.alpha * gate) * (up + 1)


def expert(module: MoE, e: int, token: Tensor) -> Tensor:
    w_in, w_out = module.w_in[e], module.w_out[e]
    if module.transposed:
        w_in, w_out = w_in.T, w_out.T
    if module.b_in is None or module.b_out is None:
        return w_out @ hidden(module, w_in @ token)
    return w_out @ hidden(module, w_in @ token + module.b_in[e]) + module.b_out[e]


def reference(module: MoE, x: Tensor) -> Tensor:
    """One token at a time, one expert at a time."""
    router = module.router
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        logits = router.weight @ token
        scores = logits.sigmoid() if router.score == "sigmoid" else logits.softmax(-1)
        bias = 0.0 if module.selection_bias is None else module.selection_bias
        chosen = (scores + bias).topk(router.top_k).indices
        weights = scores[chosen]
        if router.renormalize or router.score == "softmax_topk":
            weights = weights / weights.sum()
        weights = weights * router.routed_scale
        row = torch.zeros_like(token)
        shared = range(module.num_experts, module.num_experts + module.num_shared_experts)
        for weight, e in [*zip(weights, chosen, strict=True), *((1.0, s) for s in shared)]:
            row = row + weight * expert(module, int(e), token)
        rows.append(row)
    return torch.stack(rows).view(x.shape)


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"renormalize": False},
    {"score": "softmax_topk", "num_shared_experts": 1},
    {"score": "sigmoid", "num_shared_experts": 2, "routed_scale": 2.5},
    {"score": "sigmoid", "bias_update_rate": 0.1, "num_shared_experts": 1},
    {"activation": "gelu", "interleaved": True},
    {"activation": "gelu_tanh", "transposed": True, "num_shared_experts": 1},
    {"activation": "relu", "gated": False, "transposed": True},
    {"activation": "relu2", "gated": False, "expert_bias": True, "save_hidden": False},
    {"activation": "swiglu_oai", "alpha": 1.702, "save_hidden": False},
    {
        "activation": "swiglu_oai",
        "interleaved": True,
        "transposed": True,
        "expert_bias": True,
        "alpha": 1.702,
        "limit": 0.9,
        "num_shared_experts": 1,
    },
]


def drawn(configuration: dict[str, Any]) -> MoE:
    """With biases other than 0."""
    torch.manual_seed(0)
    module = MoE(12, 10, 6, 2, **configuration).double()
    if module.selection_bias is not None:
        module.selection_bias.copy_(torch.linspace(-0.5, 0.5, 6))
    for bias in (module.b_in, module.b_out):
        if bias is not None:
            torch.nn.init.normal_(bias)
    return module


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_output_and_gradients(configuration: dict[str, Any]) -> None:
    module = drawn(configuration)
    x = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    y, expected = module(x), reference(module, x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    wanted = [x, *module.parameters()]
    incoming = torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(y, wanted, incoming),
        torch.autograd.grad(expected, wanted, incoming),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "change",
    [
        torch.jit.script,
        lambda module: torch.compile(module, fullgraph=True, backend="aot_eager"),
    ],
    ids=["scripted", "compiled"],
)
@pytest.mark.parametrize("configuration", CONFIGURATIONS[5:], ids=str)
def test_scripted_and_compiled(configuration: dict[str, Any], change: Any) -> None:
    """Training steps: the same results and gradients."""
    module = drawn(configuration)
    changed = change(module)
    x = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    wanted = [x, *module.parameters()]
    for _ in range(2):  # TorchScript first watches, then optimizes
        y, expected = changed(x), module(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y.square().sum(), wanted),
            torch.autograd.grad(expected.square().sum(), wanted),
        )


@pytest.mark.parametrize("per_sequence", [False, True])
def test_capacity(per_sequence: bool) -> None:
    """What is dropped contributes nothing, to results and gradients; shared experts see all."""
    torch.manual_seed(0)
    module = MoE(
        8,
        6,
        4,
        2,
        num_shared_experts=1,
        capacity_factor=0.7,
        drop="weight",
        per_sequence=per_sequence,
    ).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)
    weights, ids = module.router(x)
    assert (ids < 0).any()
    rows = []
    for t, token in enumerate(x.flatten(0, 1)):
        chosen = [(w, e) for w, e in zip(weights[t], ids[t], strict=True) if e >= 0]
        row = torch.zeros_like(token)
        for weight, e in [*chosen, (1.0, 4)]:
            row = row + weight * expert(module, int(e), token)
        rows.append(row)
    expected, y = torch.stack(rows).view(x.shape), module(x)
    torch.testing.assert_close(y, expected)
    wanted = [x, *module.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
    )
    assert int(module.dropped) == 2 * int((ids < 0).sum())  # two calls
    assert float(module.load_statistics().dropped) == float(module.dropped) / 72


def test_masked_tokens_are_left_out() -> None:
    """Of results, losses, counts and gradients, even where they are NaN."""
    torch.manual_seed(0)
    module = MoE(8, 6, 4, 2, num_shared_experts=1, balance_loss_weight=0.1, capacity=3)
    twin = copy.deepcopy(module)
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, False]])
    x = torch.randn(2, 5, 8)
    kept = x[mask].clone().requires_grad_()
    x[~mask] = torch.nan
    x.requires_grad_()
    y, expected = module(x, mask), twin(kept)
    assert y[~mask].eq(0).all()
    torch.testing.assert_close(y[mask], expected)
    assert torch.equal(module.load, twin.load)
    torch.testing.assert_close(module.aux_loss, twin.aux_loss)
    (y.square().sum() + module.aux_loss).backward()
    (expected.square().sum() + twin.aux_loss).backward()
    assert x.grad is not None
    assert x.grad[~mask].eq(0).all()
    torch.testing.assert_close(x.grad[mask], kept.grad)
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_losses() -> None:
    torch.manual_seed(0)
    module = MoE(8, 4, 5, 2, score="sigmoid", balance_loss_weight=0.5, z_loss_weight=0.25).double()
    x = torch.randn(7, 8, dtype=torch.float64)
    module(x)
    logits = x @ module.router.weight.T
    scores = logits.sigmoid()
    share = scores.topk(2).indices.flatten().bincount(minlength=5) / 14
    mean = (scores / scores.sum(-1, keepdim=True)).mean(0)
    balance = 5 * (share * mean).sum()
    expected = 0.5 * balance + 0.25 * logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(module.aux_loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(module.aux_loss, module.router.weight),
        torch.autograd.grad(expected, module.router.weight),
    )


def test_aux_losses_sums_over_a_model() -> None:
    torch.manual_seed(0)
    first, second = (MoE(8, 4, 4, 2, z_loss_weight=0.1) for _ in range(2))
    model = torch.nn.Sequential(first, second)
    model(torch.randn(3, 8))
    assert first.aux_loss > 0
    torch.testing.assert_close(aux_losses(model), first.aux_loss + second.aux_loss)
    assert aux_losses(torch.nn.Linear(2, 2)) == 0


def test_update_bias_follows_the_load() -> None:
    module = MoE(4, 4, 4, 1, score="sigmoid", bias_update_rate=0.01)
    with torch.no_grad():
        module.router.weight.zero_()  # all scores equal: the lowest expert gets every token
    x = torch.randn(10, 4)
    module(x)
    module(x)
    assert module.load.tolist() == [20, 0, 0, 0]
    module.update_bias()
    assert module.load.tolist() == [0, 0, 0, 0]
    assert module.selection_bias is not None
    torch.testing.assert_close(module.selection_bias, torch.tensor([-0.01, 0.01, 0.01, 0.01]))
    module(x)
    assert module.load.tolist() == [0, 10, 0, 0]


def test_eval_counts_nothing() -> None:
    module = MoE(8, 4, 4, 2, z_loss_weight=0.1).eval()
    module(torch.randn(3, 8))
    assert module.load.sum() == 0
    assert module.aux_loss == 0


def test_a_layer_follows_a_router_that_it_is_given() -> None:
    options = {"score": "sigmoid", "bias_update_rate": 0.1, "z_loss_weight": 0.1}
    first, second = MoE(8, 4, 4, 2, **options), MoE(8, 4, 4, 2, **options)
    names = list(second.state_dict())
    second.router = first.router
    second(torch.randn(5, 8))
    for name in ("load", "dropped", "selection_bias", "aux_loss"):
        assert getattr(second, name) is getattr(first.router, name)
    assert int(first.load.sum()) == int(second.load.sum()) == 10
    assert list(second.state_dict()) == names


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda module: module,
        torch.jit.script,
        lambda module: torch.compile(module, fullgraph=True, backend="aot_eager"),
    ],
    ids=["as made", "scripted", "compiled"],
)
def test_a_forward_in_eval_mode_leaves_no_loss(change: Any, frozen: bool) -> None:
    torch._dynamo.reset()
    module = change(MoE(8, 4, 4, 2, balance_loss_weight=0.1).requires_grad_(not frozen))
    x = torch.randn(3, 8)
    module(x)
    assert module.aux_loss > 0
    module.eval()
    module(x)
    for loss in (module.aux_loss, module.router.aux_loss):
        assert loss == 0
        assert not loss.requires_grad


def test_router_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    module = MoE(16, 4, 8, 2)
    x = torch.randn(5, 16)
    expected = F.linear(x, module.router.weight)
    scripted = torch.jit.script(module)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert torch.equal(module.router.logits(x), expected)
        torch.testing.assert_close(scripted.router.logits(x), expected, rtol=1e-6, atol=1e-6)
        assert module(x).dtype == torch.bfloat16


def test_copy_and_save_after_training() -> None:
    module = MoE(8, 4, 4, 2, z_loss_weight=0.1)
    module(torch.randn(3, 8))
    assert module.aux_loss.requires_grad
    twin = copy.deepcopy(module)
    assert module.aux_loss.requires_grad
    assert twin.aux_loss == 0
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x = torch.randn(3, 8)
    assert torch.equal(loaded(x), module(x))
    assert torch.equal(twin(x), module(x))


def through_script(module: MoE) -> torch.nn.Module:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    loaded: torch.nn.Module = torch.jit.load(file)
    return loaded


def assigned(module: MoE) -> MoE:
    other = MoE(8, 4, 4, 2, score="sigmoid", bias_update_rate=0.1, z_loss_weight=0.1)
    other.load_state_dict(module.state_dict(), assign=True)
    return other


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module,
        lambda module: module.double().float(),
        copy.deepcopy,
        torch.jit.script,
        through_script,
        assigned,
        lambda module: torch.compile(module, fullgraph=True, backend="aot_eager"),
    ],
    ids=["as made", "cast", "copied", "scripted", "scripted and saved", "assigned", "compiled"],
)
def test_layer_and_router_count_in_the_same_tensors(change: Any) -> None:
    torch._dynamo.reset()
    made = MoE(8, 4, 4, 2, score="sigmoid", bias_update_rate=0.1, z_loss_weight=0.1)
    module = change(made)
    x = torch.randn(5, 8)
    module(x)
    module(x)
    assert int(module.load.sum()) == int(module.router.load.sum()) == 20
    assert module.aux_loss > 0
    assert torch.equal(module.aux_loss, module.router.aux_loss)
    module.update_bias()
    assert int(module.load.sum()) == int(module.router.load.sum()) == 0
    assert module.selection_bias.ne(0).any()
    assert torch.equal(module.selection_bias, module.router.selection_bias)
    assert {name.split(".")[-1] for name in made.state_dict()} == {
        "weight", "selection_bias", "load", "dropped", "w_in", "w_out"
    }  # fmt: skip


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"top_k in \[1, 4\], got 5"):
        MoE(8, 4, 4, 5)
    for option in ("jitter", "input_jitter"):
        with pytest.raises(ValueError, match=rf"expected {option} in \[0, 1\), got 2.0"):
            MoE(8, 4, 4, 2, **{option: 2.0})
    with pytest.raises(ValueError, match="num_shared_experts of at least 0, got -1"):
        MoE(8, 4, 4, 2, num_shared_experts=-1)
    with pytest.raises(ValueError, match="needs a sigmoid score, got score='softmax'"):
        MoE(8, 4, 4, 2, bias_update_rate=0.1)
