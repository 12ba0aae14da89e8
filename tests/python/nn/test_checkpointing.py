"""fulgurite.nn.Router and MoE where a forward runs more than once: checkpointing, shared layers."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from fulgurite.nn import MoE, Router, aux_losses

Run = Callable[[nn.Module, Tensor], Tensor]


def plain(module: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = module(x)
    return y


def checkpointed(*reentrant: bool) -> Run:
    """Regions inside of regions, the outermost first."""

    def run(module: nn.Module, x: Tensor) -> Tensor:
        function: Any = module
        for kind in reversed(reentrant):
            function = regional(function, kind)
        y: Tensor = function(x)
        return y

    return run


def regional(function: Any, reentrant: bool) -> Any:
    return lambda x: checkpoint(function, x, use_reentrant=reentrant)


def to_the_end(module: nn.Module, x: Tensor) -> Tensor:
    with set_checkpoint_early_stop(False):
        return checkpointed(False)(module, x)


KINDS: dict[str, Run] = {
    "kept": checkpointed(False),
    "to the end": to_the_end,
    "reentrant": checkpointed(True),
    "kept in kept": checkpointed(False, False),
    "reentrant in kept": checkpointed(False, True),
    "kept in reentrant": checkpointed(True, False),
    "reentrant in reentrant": checkpointed(True, True),
}

every_kind = pytest.mark.parametrize("run", KINDS.values(), ids=list(KINDS))

OPTIONS: dict[str, Any] = {
    "capacity_factor": 0.8,
    "balance_loss_weight": 0.5,
    "z_loss_weight": 0.25,
    "score": "sigmoid",
    "selection_bias": True,
}


class Twice(nn.Module):
    """A layer that runs twice, and one that runs once."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.other = (MoE(8, 6, 4, 2, **OPTIONS).double() for _ in range(2))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.run(self.shared, x)
        x = x + self.run(self.other, x)
        return x + self.run(self.shared, x)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    loss.backward()
    found = []
    for p in model.parameters():
        assert p.grad is not None
        found.append(p.grad.clone())
        p.grad = None
    return found


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 9, 8, dtype=torch.float64, generator=generator, requires_grad=True)


@every_kind
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_counts_losses_and_gradients_of_a_plain_forward(run: Run, scale: float) -> None:
    expected_model, model = Twice(plain), Twice(run)
    for _ in range(2):  # nothing of the first step is left in the second
        x, expected_x = tokens(), tokens()
        expected_y, y = expected_model(expected_x), model(x)
        expected_aux, aux = aux_losses(expected_model), aux_losses(model)
        torch.testing.assert_close(aux, expected_aux)
        expected = gradients(expected_model, scale * (expected_y.square().mean() + expected_aux))
        actual = gradients(model, scale * (y.square().mean() + aux))
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(x.grad, expected_x.grad)
    for name in ("shared", "other"):
        layer, twin = getattr(model, name), getattr(expected_model, name)
        assert torch.equal(layer.load, twin.load)
        assert torch.equal(layer.dropped, twin.dropped)
    assert int(model.shared.load.sum()) == 2 * 2 * 36
    assert int(model.shared.dropped) > 0


@every_kind
def test_without_the_loss_nothing_hangs(run: Run) -> None:
    expected_model, model = Twice(plain), Twice(run)
    expected = gradients(expected_model, expected_model(tokens()).square().mean())
    torch.testing.assert_close(gradients(model, model(tokens()).square().mean()), expected)
    assert aux_losses(model) == 0  # a backward has passed


@every_kind
def test_the_loss_of_one_layer(run: Run) -> None:
    expected_model, model = Twice(plain), Twice(run)
    results = []
    for module in (expected_model, model):
        y = module(tokens())
        results.append(gradients(module, 0.0 * y.sum() + 3.0 * module.other.aux_loss))
    torch.testing.assert_close(results[1], results[0])


@every_kind
def test_parts_of_a_batch_with_weights_of_their_own(run: Run) -> None:
    """Each part's loss before the next part's forward, one backward for all."""
    results = []
    for kind in (plain, run):
        model, loss = Twice(kind), torch.zeros((), dtype=torch.float64)
        for part, weight in zip(tokens().split(1), (0.3, 5.0), strict=True):
            loss = loss + weight * (model(part).square().mean() + aux_losses(model))
        results.append(gradients(model, loss))
    torch.testing.assert_close(results[1], results[0])


@every_kind
def test_forwards_of_the_next_part_before_the_backward(run: Run) -> None:
    """As a pipeline's schedule interleaves them."""
    results = []
    for kind in (plain, run):
        model, losses = Twice(kind), []
        for part in tokens().split(1):
            losses.append(model(part).square().mean() + aux_losses(model))
        results.append([g for loss in losses for g in gradients(model, loss)])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_region_that_returns_its_loss(reentrant: bool) -> None:
    results = []
    for kind in (None, reentrant):
        layer = Twice(plain).other

        def block(x: Tensor, layer: MoE = layer) -> tuple[Tensor, Tensor]:
            return layer(x), layer.aux_loss

        x = tokens()
        y, aux = block(x) if kind is None else checkpoint(block, x, use_reentrant=kind)
        results.append(gradients(layer, y.square().mean() + aux))
    torch.testing.assert_close(results[1], results[0])


def test_summing_inside_a_reentrant_region_is_refused() -> None:
    layer = Twice(plain).other

    def whole(x: Tensor) -> Tensor:
        loss: Tensor = layer(x).square().mean() + aux_losses(layer)
        return loss

    loss = checkpoint(whole, tokens(), use_reentrant=True)
    with pytest.raises(RuntimeError, match="outside of what is checkpointed with use_reentrant"):
        loss.backward()


def test_a_shared_layer_sums_its_uses() -> None:
    layer = MoE(8, 6, 4, 2, **OPTIONS)
    x = torch.randn(5, 8)
    y = layer(x)
    first = layer.aux_loss.item()
    layer(y)
    second = layer.aux_loss.item()
    assert first != second
    total = aux_losses(nn.Sequential(layer))
    torch.testing.assert_close(total.item(), first + second)
    assert torch.equal(aux_losses(layer), total)  # the same again
    total.backward()
    layer(x)
    torch.testing.assert_close(aux_losses(layer).item(), first)


def test_layers_that_do_not_run_leave_no_old_loss() -> None:
    first, second = (MoE(8, 6, 4, 2, **OPTIONS) for _ in range(2))
    model, x = nn.ModuleList([first, second]), torch.randn(5, 8)
    for layer in model:
        layer(x)
    aux_losses(model).backward()
    first(x)  # the second one is left out, as stochastic depth does
    assert torch.equal(aux_losses(model), first.aux_loss)
    aux_losses(model).backward()
    first.eval()
    first(x)
    assert first.aux_loss == first.router.aux_loss == 0
    second(x)
    assert torch.equal(aux_losses(model), second.aux_loss)
    assert aux_losses(first) == 0
    for p in second.parameters():
        p.requires_grad_(False)
    second(x)
    assert not aux_losses(model).requires_grad


def test_evaluation_in_between_loses_nothing() -> None:
    layer, x = MoE(8, 6, 4, 2, **OPTIONS), torch.randn(5, 8)
    layer(x)
    expected = layer.aux_loss
    layer.eval()(x)
    layer.train()
    assert torch.equal(aux_losses(layer), expected)


def test_who_reads_aux_loss_alone_keeps_no_graphs() -> None:
    layer = MoE(8, 6, 4, 2, **OPTIONS)
    graphs = []
    for _ in range(4):
        y = layer(torch.randn(5, 8))
        (y.sum() + layer.aux_loss).backward()
        graphs.append(weakref.ref(layer.aux_loss))
    del y
    gc.collect()
    assert [graph() is None for graph in graphs] == [True, True, True, False]


@every_kind
def test_recomputed_graphs_are_not_kept(run: Run) -> None:
    layer = Twice(plain).other
    y = run(layer, tokens())
    (y.square().mean() + aux_losses(layer)).backward()
    assert not layer.router.aux_loss.requires_grad
    assert not layer.aux_loss.requires_grad
    assert layer.aux_loss > 0
    assert layer.router.ledger.latest is None
    assert layer.router.ledger.open == []


def entries(router: Router) -> int:
    count, entry = 0, router.ledger.latest
    while entry is not None:
        count, entry = count + 1, entry.earlier
    return count


@pytest.mark.parametrize("compiled", [False, True])
def test_losses_that_nobody_reads_are_bounded(compiled: bool) -> None:
    torch._dynamo.reset()
    router = Router(4, 2, 1, z_loss_weight=1.0)
    forward = torch.compile(router, fullgraph=True, backend="eager") if compiled else router
    x = torch.randn(2, 4)
    with torch.no_grad():
        for _ in range(600):
            forward(x)
    assert entries(router) < 512
    assert aux_losses(router) > 0


def test_a_layer_with_promises_is_copied_and_saved() -> None:
    layer, x = MoE(8, 6, 4, 2, **OPTIONS), torch.randn(5, 8)
    with torch.no_grad():
        layer(x)
    twin = copy.deepcopy(layer)
    assert aux_losses(twin) == 0
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded.load, layer.load)
    assert aux_losses(layer) > 0


# ---------------------------------------------------------------- compiled


@pytest.mark.parametrize(
    "run",
    [
        plain,
        KINDS["kept"],
        KINDS["reentrant"],
        *(pytest.param(KINDS[name], marks=pytest.mark.full) for name in list(KINDS)[3:]),
    ],
)
def test_compiled_layers(run: Run) -> None:
    torch._dynamo.reset()
    expected_model, model = Twice(plain), Twice(run)
    for name in ("shared", "other"):
        compiled = torch.compile(getattr(model, name), fullgraph=True, backend="aot_eager")
        setattr(model, name, compiled)
    for _ in range(2):
        expected = gradients(
            expected_model,
            expected_model(tokens()).square().mean() + aux_losses(expected_model),
        )
        y = model(tokens())
        actual = gradients(model, y.square().mean() + aux_losses(model))
        torch.testing.assert_close(actual, expected)
    assert torch.equal(model.shared.load, expected_model.shared.load)
    assert torch.equal(model.shared.dropped, expected_model.shared.dropped)


def test_compiled_around_a_checkpoint() -> None:
    torch._dynamo.reset()
    expected_model, model = Twice(plain), Twice(checkpointed(False))
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        expected = gradients(
            expected_model,
            expected_model(tokens()).square().mean() + aux_losses(expected_model),
        )
        y = compiled(tokens())
        actual = gradients(model, y.square().mean() + aux_losses(model))
        torch.testing.assert_close(actual, expected)
    assert torch.equal(model.shared.load, expected_model.shared.load)


# ---------------------------------------------------------------- data-parallel wrappers


def test_counts_are_no_buffers_but_saved() -> None:
    """What DistributedDataParallel broadcasts are buffers; each process counts its own tokens."""
    layer = MoE(8, 6, 4, 2, **OPTIONS)
    names = {name for name, _ in layer.named_buffers(remove_duplicate=False)}
    assert names == {"selection_bias", "router.selection_bias"}
    layer(torch.randn(5, 8))
    state = layer.state_dict()
    assert int(state["router.load"].sum()) == 10
    for assign in (False, True):
        twin = MoE(8, 6, 4, 2, **OPTIONS)
        twin.load_state_dict(state, assign=assign)
        assert torch.equal(twin.load, layer.load)
        assert twin.load is twin.router.load
        assert torch.equal(twin.dropped, layer.dropped)
    with pytest.raises(RuntimeError, match=r"size mismatch for router\.load.*\[4\], got \[3\]"):
        layer.load_state_dict(state | {"router.load": torch.zeros(3)})
    with pytest.raises(RuntimeError, match=r"Missing key.*router\.dropped"):
        layer.load_state_dict({k: v for k, v in state.items() if k != "router.dropped"})


def test_replicas_count_and_lose_for_the_module() -> None:
    layer, x = MoE(8, 6, 4, 2, **OPTIONS), torch.randn(5, 8)
    replicas = [layer._replicate_for_data_parallel() for _ in range(2)]
    for replica in replicas:
        replica.router = layer.router._replicate_for_data_parallel()
        for module, of in ((replica, layer), (replica.router, layer.router)):
            for name, p in of.named_parameters(recurse=False):
                setattr(module, name, p.clone())  # as nn.DataParallel's copies, no leaves
        replica(x)
    assert int(layer.load.sum()) == 20
    assert aux_losses(layer) > 0
    aux_losses(layer).backward()
    assert layer.router.weight.grad is not None


def test_a_router_by_itself() -> None:
    router = Router(8, 4, 2, z_loss_weight=1.0).double()
    x = tokens()
    weights, _ = checkpoint(router, x, use_reentrant=True)
    (0.0 * weights.sum() + aux_losses(router)).backward()
    got = router.weight.grad
    router.weight.grad = None
    router(tokens())
    aux_losses(router).backward()
    torch.testing.assert_close(got, router.weight.grad)
