"""RMS norms of transformers by apply(norms=True): numbers, dtypes, copies, and what stays."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import fulgurite.integrations.transformers as ft
from fulgurite.integrations.transformers import norms
from integrations.transformers_models import assert_alike, made, outcome
from seen import Seen

COPIES = [
    "chameleon.ChameleonRMSNorm", "deepseek_v3.DeepseekV3RMSNorm", "gemma2.Gemma2RMSNorm",
    "mamba.MambaRMSNorm", "mistral.MistralRMSNorm", "mixtral.MixtralRMSNorm", "mt5.MT5LayerNorm",
    "olmo2.Olmo2RMSNorm", "qwen2.Qwen2RMSNorm", "qwen2_vl.Qwen2VLRMSNorm", "qwen3.Qwen3RMSNorm",
    "qwen3_moe.Qwen3MoeRMSNorm", "switch_transformers.SwitchTransformersLayerNorm",
]  # fmt: skip
# Of two layers: two norms a layer and the last one; more where heads are normalised, or states.
REPLACED = {
    "chameleon": {"ChameleonRMSNorm": 5},
    "deepseek_v3": {"DeepseekV3RMSNorm": 9},
    "gpt_oss": {"GptOssRMSNorm": 5},
    "llama": {"LlamaRMSNorm": 5},
    "mistral": {"MistralRMSNorm": 5},
    "mixtral": {"MixtralRMSNorm": 5},
    "qwen2_vl": {"Qwen2VLRMSNorm": 5},
    "qwen3_moe": {"Qwen3MoeRMSNorm": 9},
    "switch": {"SwitchTransformersLayerNorm": 12},
    "t5": {"T5LayerNorm": 12},
}
QUICK = ("llama", "qwen3_moe", "t5")
models = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.full]) for n in REPLACED]
)


def norm_of(place: str) -> Any:
    """A released norm of width 40 with a random weight."""
    model, name = place.split(".")
    cls = norms.released_class(model, name)
    unweighted = name == "NanoChatRMSNorm"
    norm = cls() if unweighted else cls(40)
    for weight in norm.parameters():
        nn.init.normal_(weight)
    return norm


def led(norm: nn.Module) -> nn.Module:
    """The same module under its subclass."""
    other = copy.deepcopy(norm)
    assert sum(ft.apply(other, attention=False, norms=True).replaced.values()) == 1
    return other


def trained(norm: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    out = norm(x)
    pattern = torch.linspace(-1, 1, out.numel()).cos().view(out.shape)
    grads = torch.autograd.grad((out * pattern).sum(), [x, *norm.parameters()])
    return [out.detach(), *grads]


@pytest.mark.parametrize("place", [*norms.FORMULAS, *COPIES])
def test_numbers_and_dtypes_of_a_norm(place: str) -> None:
    """In 16 bits as near to the exact numbers as the released class."""
    torch.manual_seed(0)
    norm = norm_of(place)
    wide, x = led(norm).double(), torch.randn(6, 5, 40)
    for got, released in zip(trained(led(norm), x), trained(norm, x), strict=True):
        torch.testing.assert_close(got, released)
    for dtype, of_weight in (
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
    ):
        norm, low = norm.to(of_weight), x.to(dtype)
        wide.load_state_dict(norm.state_dict())
        both = trained(led(norm), low), trained(norm, low)
        for got, released, exact in zip(*both, trained(wide, low.double()), strict=True):
            assert got.dtype == released.dtype
            error, of_released = ((t.double() - exact).norm() for t in (got, released))
            assert error <= 1.05 * of_released + 1e-5 * exact.norm()


@models
def test_numbers_gradients_and_the_way_back(name: str) -> None:
    model, inputs = made(name)
    classes = [type(module) for module in model.modules()]
    expected = outcome(model, inputs)
    done = ft.apply(model, attention=False, experts=False, norms=True)
    assert done.replaced == REPLACED[name]
    assert all(isinstance(m, cls) for m, cls in zip(model.modules(), classes, strict=True))
    with Seen() as seen:
        got = outcome(model, inputs)
    assert seen.count("_rms_norm_forward") == seen.count("_rms_norm_backward")
    assert seen.count("_rms_norm_forward") == sum(done.replaced.values())
    assert not any("rsqrt" in name for name in seen.names)
    assert_alike(got, expected)
    done.restore()
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(outcome(model, inputs)[0], expected[0])


@models
def test_copies_and_a_compiled_whole(name: str, tmp_path: Path) -> None:
    model, inputs = made(name)
    expected = outcome(model, inputs)
    ft.apply(model, norms=True)
    assert_alike(outcome(copy.deepcopy(model), inputs), expected)
    model.save_pretrained(tmp_path)
    eager = dict.fromkeys(("attn_implementation", "experts_implementation"), "eager")
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64, **eager)
    torch.testing.assert_close(again(**inputs)[0], expected[0], rtol=1e-5, atol=1e-5)
    if name != "qwen2_vl":  # places images by a count of tokens
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        out, grads = outcome(compiled, inputs)
        assert_alike((out, {k.removeprefix("_orig_mod."): g for k, g in grads.items()}), expected)


def test_a_saved_norm_is_read_by_another_process(tmp_path: Path) -> None:
    norm, x = norm_of("gemma.GemmaRMSNorm"), torch.randn(3, 40)
    torch.save((led(norm), x, norm(x)), tmp_path / "norm.pt")
    program = (
        "import sys, torch\n"
        "norm, x, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "assert type(norm).__module__ == 'fulgurite.integrations.transformers.norms'\n"
        "torch.testing.assert_close(norm(x), expected)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "norm.pt")], check=True)


def test_a_subclass_is_found_by_its_name_alone() -> None:
    found = norms.qwen2__Qwen2RMSNorm
    assert found is norms.subclass_of(norms.released_class("qwen2", "Qwen2RMSNorm"))
    for name in ("nothing", "sam__SamLayerNorm", "__path__"):
        with pytest.raises(AttributeError, match=f"no attribute {name}"):
            getattr(norms, name)


def test_hooks_and_recorded_outputs_stay() -> None:
    model, inputs = made("llama")
    seen: list[tuple[str, torch.Size]] = []
    for norm in (m for m in model.modules() if type(m).__name__ == "LlamaRMSNorm"):
        norm.register_forward_pre_hook(lambda m, args: seen.append(("before", args[0].shape)))
        norm.register_forward_hook(lambda m, args, out: seen.append(("after", out.shape)))
    model(**inputs)
    expected, seen[:] = list(seen), []
    ft.apply(model, norms=True)
    hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert seen == expected
    assert len(hidden) == 3


def test_norms_come_with_a_second_call() -> None:
    model, _ = made("mixtral")
    first = ft.apply(model)
    assert "MixtralRMSNorm" not in first.replaced
    ft.apply(model, norms=True).restore()
    assert not any(type(m).__module__ == norms.__name__ for m in model.modules())


def test_a_float32_weight_in_autocast() -> None:
    model, inputs = made("qwen3_moe")
    exact, _ = outcome(model, inputs)
    model = model.float()
    errors = []
    for lead in (False, True):
        if lead:
            ft.apply(model, attention=False, experts=False, norms=True)
        with torch.autocast("cpu", torch.bfloat16):
            out, _ = outcome(model, inputs)
        errors.append((out.double() - exact).norm())
    assert errors[1] <= 1.25 * errors[0]


@pytest.mark.full
def test_every_class_of_a_known_formula_is_found() -> None:
    """Copies of Llama's norm in other models, as far as transformers says they are copies."""
    folder = Path(hf.__file__).parent / "models"
    found = 0
    for file in folder.glob("*/modeling_*.py"):
        if "eps={self.variance_epsilon}" not in file.read_text():
            continue
        module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        own = [c for n, c in vars(module).items() if n.endswith("RMSNorm") and isinstance(c, type)]
        found += sum(norms.subclass_of(cls) is not None for cls in own)
    assert found >= 150


def test_another_formula_raises_and_a_layer_norm_stays() -> None:
    class Norms(nn.Module):
        def __init__(self, cls: Any) -> None:
            super().__init__()
            self.norm, self.other = norm_of("llama.LlamaRMSNorm"), cls

    other = importlib.import_module("transformers.models.deepseek_v4.modeling_deepseek_v4")
    model = Norms(other.DeepseekV4UnweightedRMSNorm())
    with pytest.raises(NotImplementedError, match="norms of DeepseekV4UnweightedRMSNorm cannot"):
        ft.apply(model, norms=True)
    assert type(model.norm).__name__ == "LlamaRMSNorm"
    cohere = importlib.import_module("transformers.models.cohere.modeling_cohere")
    for stays in (cohere.CohereLayerNorm(4), nn.LayerNorm(4), nn.RMSNorm(4)):
        model = Norms(stays)
        assert ft.apply(model, norms=True).replaced == {"LlamaRMSNorm": 1}
        assert type(model.other) is type(stays)


def test_a_version_without_a_class_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    modeling = importlib.import_module("transformers.models.llama.modeling_llama")
    monkeypatch.delattr(modeling, "LlamaRMSNorm")
    methods = {"__module__": modeling.__name__, "forward": lambda self, x: x}
    with pytest.raises(ImportError, match=r"without transformers.models.llama.modeling_llama.Lla"):
        norms.subclass_of(type("NewRMSNorm", (nn.Module,), methods))
