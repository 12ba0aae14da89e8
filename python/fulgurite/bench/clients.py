"""Training steps of released models of transformers, before and after ``apply``.

The released class runs with its best implementations: attention by ``sdpa``, experts by
``grouped_mm``, a scan by the class's own PyTorch path. Both sides have the same weights and see the
same batch; a step is forward, loss and backward, without the optimizer. Eager against eager, and
both compiled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fulgurite.integrations.transformers as ft
from fulgurite.bench.harness import Case, MemoryCase
from fulgurite.bench.parts import parts
from fulgurite.bench.peak import name_of
from fulgurite.demo.train import default_precision

Batch = dict[str, Tensor]
# A vocabulary this small is for a model this small what 128 thousand are for one of 8 billion.
TEXT: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "use_cache": False,
}
BATCH, TOKENS, IMAGES = 1, 1024, 2
SCANNED = 128  # tokens: the released scan's backward takes a time that grows with their square


def _text(make: Callable[[Any], nn.Module], config: Any, quick: bool) -> tuple[nn.Module, Batch]:
    shape = (1, 64) if quick else (BATCH, TOKENS)
    ids = torch.randint(config.vocab_size, shape)
    return make(config), {"input_ids": ids, "labels": ids}


def _few(quick: bool) -> dict[str, Any]:
    return TEXT | ({"hidden_size": 64, "num_hidden_layers": 1} if quick else {})


def llama(quick: bool) -> tuple[nn.Module, Batch]:
    """Four query heads to a key/value head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_few(quick), intermediate_size=64 if quick else 1408)
    return _text(LlamaForCausalLM, config, quick)


def qwen3_moe(quick: bool) -> tuple[nn.Module, Batch]:
    """Four of 32 experts to a token, in every layer."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        **_few(quick),
        head_dim=64,
        moe_intermediate_size=64 if quick else 256,
        num_experts=32,
        num_experts_per_tok=4,
        decoder_sparse_step=1,
        norm_topk_prob=True,
    )
    return _text(Qwen3MoeForCausalLM, config, quick)


def swin(quick: bool) -> tuple[nn.Module, Batch]:
    """Swin-T: windows of 7 × 7, every second layer shifted."""
    from transformers import SwinConfig, SwinForImageClassification

    small = {"image_size": 56, "depths": [2], "num_heads": [3]} if quick else {}
    config = SwinConfig(**{"image_size": 224} | small, num_labels=1000, drop_path_rate=0.0)
    size, count = config.image_size, 1 if quick else IMAGES
    images, labels = torch.randn(count, 3, size, size), torch.randint(1000, (count,))
    return SwinForImageClassification(config), {"pixel_values": images, "labels": labels}


def mamba(quick: bool) -> tuple[nn.Module, Batch]:
    """512 channels of 16 states."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=2048,
        hidden_size=64 if quick else 256,
        num_hidden_layers=1 if quick else 2,
        use_cache=False,
    )
    ids = torch.randint(config.vocab_size, (1, 16 if quick else SCANNED))
    return MambaForCausalLM(config), {"input_ids": ids, "labels": ids}


MORE = "with norms, rotary"  # what apply leads besides, where the shape says so
MODELS = {
    f"Llama H512 S{TOKENS} B{BATCH}, {MORE}": llama,
    f"Qwen3-MoE H512 E32 k4 S{TOKENS} B{BATCH}, {MORE}": qwen3_moe,
    f"Swin-T 224² B{IMAGES}": swin,
    f"Mamba H256 N16 S{SCANNED} B1": mamba,
}


@dataclass
class Pair:
    """A released model, the same one led to fulgurite, and a batch."""

    shape: str
    dtype: torch.dtype
    plain: nn.Module
    ours: nn.Module
    batch: Batch

    @property
    def scans(self) -> bool:
        return "Mamba" in self.shape

    @property
    def baseline(self) -> str:
        if self.scans:
            return "released scan"
        return "sdpa, grouped_mm" if "MoE" in self.shape else "sdpa"

    @property
    def work(self) -> str:
        return f"training step{' with scans' if self.scans else ''} {name_of(self.dtype)}"

    @property
    def least(self) -> int:
        """Pairs, fewer where a released step takes seconds."""
        return 3 if self.scans else 15

    @staticmethod
    def made(shape: str, dtype: torch.dtype, quick: bool) -> Pair:
        torch.manual_seed(0)
        plain, batch = MODELS[shape](quick)
        plain = plain.to(dtype).train()
        released: Any = plain
        if "Mamba" not in shape:
            released.set_attn_implementation("sdpa")
        if "MoE" in shape:
            released.set_experts_implementation("grouped_mm")
        ours = copy.deepcopy(plain)
        more = MORE in shape
        ft.apply(ours, routers="MoE" in shape, rotary=more, norms=more)
        cast = {k: x.to(dtype) if x.is_floating_point() else x for k, x in batch.items()}
        return Pair(shape, dtype, plain, ours, cast)

    def step(self, model: Any) -> None:
        """Fresh gradients, as after ``optimizer.zero_grad()``."""
        model(**self.batch).loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    def profiled(self) -> dict[str, dict[str, float]]:
        sides = {"ours": self.ours, "plain": self.plain}
        return {
            name: parts(lambda m=model: self.step(m), model)  # type: ignore[misc]
            for name, model in sides.items()
        }

    def gradient_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.plain.parameters())


def _pairs(quick: bool) -> Iterator[Pair]:
    dtypes = [torch.float32]
    if default_precision() == "bf16":  # where this machine multiplies it
        dtypes.append(torch.bfloat16)
    for dtype in dtypes[: 1 if quick else None]:
        for shape in MODELS:
            yield Pair.made(shape, dtype, quick)


def cases(quick: bool) -> Iterator[Case]:
    """Eager, with where its time goes, and compiled."""
    for pair in _pairs(quick):
        yield Case(
            f"{pair.work}, eager",
            pair.shape,
            pair.baseline,
            lambda p=pair: p.step(p.ours),  # type: ignore[misc]
            lambda p=pair: p.step(p.plain),  # type: ignore[misc]
            least=pair.least,
            parts=pair.profiled,
        )
        if quick:
            continue
        torch._dynamo.reset()
        ours, plain = torch.compile(pair.ours), torch.compile(pair.plain)
        yield Case(
            f"{pair.work}, compiled",
            pair.shape,
            pair.baseline,
            lambda p=pair, m=ours: p.step(m),  # type: ignore[misc]
            lambda p=pair, m=plain: p.step(m),  # type: ignore[misc]
            least=pair.least,
        )


def memory_cases(quick: bool) -> Iterator[MemoryCase]:
    """An eager step, beside its gradients."""
    for pair in _pairs(quick):
        yield MemoryCase(
            f"{pair.work}, eager",
            pair.shape,
            pair.baseline,
            lambda p=pair: p.step(p.ours),  # type: ignore[misc]
            lambda p=pair: p.step(p.plain),  # type: ignore[misc]
            kept=pair.gradient_bytes(),
        )
