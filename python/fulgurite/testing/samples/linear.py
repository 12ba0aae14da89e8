"""Sample calls of convolutions and scans. B batch, C channels, L positions, W width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.references import linear as reference
from fulgurite.testing.registry import ErrorSample, Operator, Sample
from fulgurite.testing.samples.attention_cache import offsets
from fulgurite.testing.samples.moe import normal


def causal_conv1d_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def call(
        name: str,
        B: int,
        C: int,
        L: int,
        W: int,
        *,
        of: torch.dtype = dtype,
        bias: bool = True,
        activation: str = "silu",
        state: bool = False,
        lengths: tuple[int, ...] | None = None,
        transposed: bool = False,
    ) -> Sample:
        x = normal(generator, dtype, device, B, L, C)
        x = x.transpose(1, 2) if transposed else x.transpose(1, 2).contiguous()
        weight = normal(generator, of, device, C, W) * W**-0.5
        kwargs: dict[str, Any] = {"activation": activation}
        if bias:
            kwargs["bias"] = normal(generator, of, device, C)
        sequences = B
        if lengths is not None:
            kwargs["cu_seqlens"] = offsets(device, torch.int32, *lengths)
            sequences = len(lengths)
        if state:
            kwargs["initial_state"] = normal(generator, dtype, device, sequences, C, W - 1)
        return Sample(name, (x, weight), kwargs)

    yield call("silu", 2, 12, 20, 4)
    yield call("packed", 1, 7, 24, 4, lengths=(5, 0, 2, 13), of=wide)
    yield call("channels_last", 2, 33, 40, 3, transposed=True, state=True)
    yield call("packed_states", 1, 5, 22, 4, lengths=(1, 2, 0, 9, 6), state=True, transposed=True)
    yield call("plain", 1, 5, 17, 2, bias=False, activation="none")
    yield call("shorter_than_the_width", 2, 6, 3, 7, state=True)
    yield call("one_position", 3, 40, 1, 4, state=True, of=wide, transposed=True)
    yield call("width_1", 2, 3, 9, 1, state=True)
    yield call("pieces", 1, 2, 1100, 4, state=True)
    yield call("wide", 1, 3, 150, 140, bias=False)
    yield call("no_positions", 2, 3, 0, 4, state=True)
    yield call("no_channels", 2, 0, 5, 3)
    yield call("no_sequences", 1, 2, 4, 3, lengths=())


def causal_conv1d_errors(device: torch.device) -> Iterator[ErrorSample]:
    x, weight = torch.ones(2, 3, 6, device=device), torch.ones(3, 4, device=device)
    bias, state = torch.ones(3, device=device), torch.ones(2, 3, 3, device=device)
    tensors: dict[str, tuple[tuple[Tensor, ...], type[Exception], str]] = {
        "integers": ((x.int(), weight), TypeError, "x of dtype"),
        "weight_dtype": ((x, weight.double()), TypeError, "weight of x's dtype"),
        "two_dims": ((x[0], weight), RuntimeError, r"x of shape \[B, C, L\]"),
        "weight_dims": ((x, weight[None]), RuntimeError, r"weight of shape \[C, W\]"),
        "channels": ((x, weight[:2]), RuntimeError, r"weight of shape \[3, W\]"),
        "no_width": ((x, weight[:, :0]), RuntimeError, "W >= 1"),
    }
    for name, (args, error, match) in tensors.items():
        yield ErrorSample(name, args, {}, error, match)
    options: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
        "bias_dtype": ({"bias": bias.bfloat16()}, TypeError, "bias"),
        "state_dtype": ({"initial_state": state.double()}, TypeError, "initial_state"),
        "bias_shape": ({"bias": bias[:2]}, RuntimeError, r"bias of shape \[3\]"),
        "state_shape": ({"initial_state": state[:, :, 1:]}, RuntimeError, "initial_state"),
        "activation": ({"activation": "gelu"}, ValueError, "activation 'none' or 'silu'"),
    }
    for name, (kwargs, error, match) in options.items():
        yield ErrorSample(name, (x, weight), kwargs, error, match)
    yield from pack_errors((x, weight), (x[:1], weight), 6)
    pack = {"cu_seqlens": torch.tensor([0, 2, 4, 6], device=device), "initial_state": state}
    yield ErrorSample("states_of_a_pack", (x[:1], weight), pack, RuntimeError, r"\[3, 3, 3\]")


def pack_errors(
    batch: tuple[Tensor, ...], pack: tuple[Tensor, ...], positions: int
) -> Iterator[ErrorSample]:
    """Offsets that no operator of the family takes. ``batch`` has two entries, ``pack`` one."""
    device = pack[0].device

    def starts(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    right = starts(0, 2, positions)
    cases: dict[str, tuple[tuple[Tensor, ...], Tensor, type[Exception], str]] = {
        "offsets_dtype": (pack, right.float(), TypeError, "cu_seqlens of dtype int32 or int64"),
        "offsets_dims": (pack, right[None], RuntimeError, r"\[sequences \+ 1\]"),
        "no_offsets": (pack, right[:0], RuntimeError, r"\[sequences \+ 1\]"),
        "pack_of_two": (batch, right, RuntimeError, "a batch of 1"),
        "not_from_zero": (pack, starts(1, positions), RuntimeError, "start at 0"),
        "falling": (pack, starts(0, 3, 2), RuntimeError, "rise to at most"),
        "beyond": (pack, starts(0, positions + 1), RuntimeError, f"at most {positions}, got"),
    }
    for name, (args, cu_seqlens, error, match) in cases.items():
        yield ErrorSample(name, args, {"cu_seqlens": cu_seqlens}, error, match)


OPERATORS = (
    Operator(
        name="causal_conv1d",
        samples=causal_conv1d_samples,
        errors=causal_conv1d_errors,
        reference=reference.causal_conv1d,
        differentiable=(0, 1, "bias", "initial_state"),
        autocast="lower",
        autocast_args=(0,),
    ),
)
