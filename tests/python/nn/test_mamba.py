"""fulgurite.nn.Mamba against its recurrence written out, and against transformers' layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from fulgurite.nn import Mamba
from seen import Seen


def recurrence(module: Mamba, x: Tensor) -> Tensor:
    """One position at a time."""
    (B, L, _), C, N = x.shape, module.channels, module.state_size
    W = module.conv1d.width
    u, z = module.in_proj(x).chunk(2, -1)
    line = torch.cat([u.new_zeros(B, W - 1, C), u], 1)
    states, outs = x.new_zeros(B, C, N), []
    for t in range(L):
        seen = (line[:, t : t + W] * module.conv1d.weight[:, 0].T).sum(1)
        now = nn.functional.silu(seen + module.conv1d.bias)  # (B, C)
        low, into, read = module.x_proj(now).split([module.dt_rank, N, N], -1)
        delta = nn.functional.softplus(module.dt_proj(low))[..., None]  # (B, C, 1)
        keep = (-module.A_log.exp() * delta).exp()
        states = keep * states + delta * into[:, None] * now[..., None]
        y = (states * read[:, None]).sum(-1) + module.D * now
        outs.append(y * nn.functional.silu(z[:, t]))
    out: Tensor = module.out_proj(torch.stack(outs, 1))
    return out


def mixer(dim: int = 16, **options: Any) -> MambaMixer:
    """With no weight at the value of its initialisation."""
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=dim, state_size=4, num_hidden_layers=1, **options)
    module = MambaMixer(config, 0).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight += torch.randn_like(weight) * 0.1
    return module


def assert_same_step(
    module: Mamba, x: Tensor, out: Tensor, expected: Tensor, other: nn.Module, rtol: float = 1e-9
) -> None:
    """Results and gradients, of the inputs and by the parameters' names."""
    torch.testing.assert_close(out, expected, rtol=rtol, atol=rtol)
    incoming = torch.randn_like(out)
    ours = torch.autograd.grad(out, [x, *module.parameters()], incoming)
    wanted = dict(other.named_parameters())
    names = [name for name, _ in module.named_parameters()]
    theirs = torch.autograd.grad(expected, [x, *(wanted[name] for name in names)], incoming)
    for name, got, want in zip(["x", *names], ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=rtol, atol=rtol, msg=f"gradient of {name}")


def test_output_and_gradients() -> None:
    torch.manual_seed(0)
    module = Mamba(12, 3, 5, channels=20, dt_rank=2, bias=True, dtype=torch.float64)
    x = torch.randn(2, 9, 12, dtype=torch.float64, requires_grad=True)
    assert_same_step(module, x, module(x), recurrence(module, x), module)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_bias": True, "use_conv_bias": False, "expand": 1}])
def test_a_layer_of_transformers(options: dict[str, Any], masked: bool) -> None:
    released = mixer(**options)
    module = Mamba.from_transformers(released)
    assert module.state_dict().keys() == released.state_dict().keys()
    x = torch.randn(2, 11, 16, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[0, :4] = mask[1, 9:] = not masked
    out = module(x, token_mask=mask if masked else None)
    expected = released(x, attention_mask=mask if masked else None)
    assert_same_step(module, x, out, expected, released, rtol=1e-5)  # its A is in float32


def test_a_training_step_runs_the_operators() -> None:
    module = Mamba(16)
    with Seen() as seen:
        module(torch.randn(1, 5, 16)).sum().backward()
    assert seen.count("causal_conv1d") == seen.count("_causal_conv1d_backward") == 1
    assert seen.count("_selective_scan_forward") == seen.count("_selective_scan_backward") == 1


def test_the_first_weights_are_the_published_ones() -> None:
    torch.manual_seed(0)
    module = Mamba(64, 8, dt_rank=4, dt_min=0.01, dt_max=0.05)
    assert torch.equal(module.A_log, torch.arange(1.0, 9).log().expand(128, 8))
    assert (module.D == 1).all()
    dt = nn.functional.softplus(module.dt_proj.bias)
    assert 0.01 <= dt.min() < 0.012 < 0.04 < dt.max() <= 0.0501
    assert 0.45 < module.dt_proj.weight.abs().max() <= 0.5
    least = Mamba(64, dt_min=1e-6, dt_max=1e-5)
    torch.testing.assert_close(
        nn.functional.softplus(least.dt_proj.bias), torch.full((128,), 1e-4), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_step_by_step_equals_one_call(dtype: torch.dtype, scripted: bool) -> None:
    torch.manual_seed(0)
    module = Mamba(16, dtype=dtype)
    steps = torch.jit.script(module) if scripted else module
    x = torch.randn(2, 12, 16, dtype=dtype)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, :5] = False
    with torch.no_grad():
        whole = steps(x, token_mask=mask)
        inputs, states = steps.make_cache(2)
        assert (inputs.dtype, states.dtype) == (dtype, torch.float32)
        pieces = [
            steps.step(x[:, part], inputs, states, mask[:, part])
            for part in (slice(0, 7), slice(7, 8), slice(8, 8), slice(8, 12))
        ]
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


def test_step_inside_autocast() -> None:
    module = Mamba(16)
    x = torch.randn(2, 6, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = module.make_cache(2)
        pieces = [module.step(part, *cache) for part in x.split([4, 2], 1)]
        assert pieces[0].dtype == torch.bfloat16
        torch.testing.assert_close(torch.cat(pieces, 1), module(x))


def test_packed_sequences_are_what_they_are_alone() -> None:
    torch.manual_seed(0)
    module = Mamba(16, dtype=torch.float64)
    x = torch.randn(1, 20, 16, dtype=torch.float64, requires_grad=True)
    packed = module(x, torch.tensor([0, 7, 7, 20], dtype=torch.int32))
    alone = torch.cat([module(part) for part in x.split([7, 13], 1)], 1)
    assert_same_step(module, x, packed, alone, module)


def test_what_padding_holds_is_not_seen() -> None:
    torch.manual_seed(0)
    module = Mamba(16)
    x = torch.randn(1, 9, 16)
    mask = (torch.arange(9) >= 3)[None]
    spoiled = x.clone()
    spoiled[:, :3] = torch.nan
    out = module(spoiled, token_mask=mask)
    assert torch.equal(out, module(x, token_mask=mask))
    torch.testing.assert_close(out[:, 3:], module(x[:, 3:]))


def test_compiled_and_exported() -> None:
    module = Mamba(16)
    x = torch.randn(2, 9, 16)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), module(x))


@pytest.mark.full
def test_it_learns_as_the_released_layer_does() -> None:
    """A small language model, 200 steps in float32 each."""

    class Model(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.embedding, self.layer = nn.Embedding(12, 16), layer
            self.head = nn.Linear(16, 12)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids)
            logits: Tensor = self.head(x + self.layer(x))
            return logits

    def losses(layer: nn.Module) -> Tensor:
        model = Model(layer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        found = []
        for step in range(200):
            generator = torch.Generator().manual_seed(step)
            first = torch.randint(12, (4, 1, 2), generator=generator)
            ids = (first + torch.arange(8)[:, None]).flatten(1) % 12  # x_t = x_{t−2} + 1
            loss = nn.functional.cross_entropy(
                model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        return torch.stack(found)

    released = mixer().float()
    ours, theirs = losses(Mamba.from_transformers(released)), losses(released)
    torch.testing.assert_close(ours[:20], theirs[:20], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours[-20:].mean(), theirs[-20:].mean(), rtol=0.02, atol=0)
    assert ours[-20:].mean() < 0.3 * ours[0]


def test_errors() -> None:
    module = Mamba(16)
    for wrong in (torch.randn(9, 16), torch.randn(2, 9, 15)):
        with pytest.raises(RuntimeError, match=r"Mamba: expected x of shape \[B, L, 16\], got"):
            module(wrong)
    x = torch.randn(2, 9, 16)
    with pytest.raises(
        TypeError, match=r"Mamba: expected token_mask of torch.bool, got torch.int64"
    ):
        module(x, token_mask=torch.ones(2, 9, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"token_mask of shape \[2, 9\], got \[2, 8\]"):
        module(x, token_mask=torch.ones(2, 8, dtype=torch.bool))
    inputs, states = module.make_cache(2)
    with pytest.raises(RuntimeError, match="Mamba: expected step without gradients"):
        module.step(x, inputs, states)
    with torch.no_grad(), pytest.raises(RuntimeError, match="initial_state of shape"):
        module.step(x, inputs, states[:1])
    assert inputs.count_nonzero() == states.count_nonzero() == 0


def test_layers_that_are_others() -> None:
    with pytest.raises(TypeError, match="from_transformers: expected a MambaMixer, got Linear"):
        Mamba.from_transformers(nn.Linear(2, 2))
    with pytest.raises(NotImplementedError, match="an activation of silu, got gelu"):
        Mamba.from_transformers(mixer(hidden_act="gelu"))
    adapted = mixer()
    adapted.x_proj = nn.Sequential(adapted.x_proj)
    with pytest.raises(NotImplementedError, match=r"x_proj: expected a plain nn.Linear, got"):
        Mamba.from_transformers(adapted)
