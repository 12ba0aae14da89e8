"""Sample calls of convolutions and scans.

B batch, C channels (D of a scan), L positions, W width, N states of a channel.
"""

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


def selective_scan_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def call(
        name: str,
        B: int,
        D: int,
        L: int,
        N: int,
        *,
        of: torch.dtype = dtype,
        groups: int | None = None,
        softplus: bool = True,
        gate: bool = True,
        skip: bool = True,
        state: bool = False,
        lengths: tuple[int, ...] | None = None,
        transposed: bool = False,
    ) -> Sample:
        def channels(of: torch.dtype) -> Tensor:
            t = normal(generator, of, device, B, L, D).transpose(1, 2)
            return t if transposed else t.contiguous()

        def columns() -> Tensor:
            shape = (B, N, L) if groups is None else (B, groups, N, L)
            return normal(generator, of, device, *shape)

        # Where there is no softplus to make them so, steps are positive of themselves.
        delta = channels(of).sub_(1) if softplus else channels(of).abs_().div_(4)
        A = -normal(generator, of, device, D, N).exp()
        args = (channels(dtype), delta, A, columns(), columns())
        kwargs: dict[str, Any] = {"delta_softplus": softplus}
        if skip:
            kwargs["D"] = normal(generator, of, device, D)
            kwargs["delta_bias"] = normal(generator, of, device, D).abs() / 4
        if gate:
            kwargs["z"] = channels(dtype)
        sequences = B
        if lengths is not None:
            kwargs["cu_seqlens"] = offsets(device, torch.int64, *lengths)
            sequences = len(lengths)
        if state:
            kwargs["initial_state"] = normal(generator, wide, device, sequences, D, N)
        return Sample(name, args, kwargs)

    yield call("mamba", 2, 10, 20, 4)
    yield call("packed", 1, 6, 22, 3, lengths=(5, 0, 2, 12), of=wide, transposed=True)
    yield call("packed_states", 1, 5, 45, 2, lengths=(1, 40, 0, 4), state=True)
    yield call("plain", 2, 37, 9, 5, softplus=False, gate=False, skip=False, transposed=True)
    yield call("groups", 1, 12, 7, 3, groups=3, of=wide, state=True)
    yield call("group_of_each", 1, 3, 6, 2, groups=3, gate=False)
    yield call("blocks", 1, 3, 70, 2, state=True)
    yield call("wide_ranges", 1, 70, 4, 1, gate=False)
    yield call("one_position", 3, 20, 1, 6, state=True, transposed=True)
    yield call("no_positions", 2, 3, 0, 4, state=True)
    yield call("no_states", 2, 3, 5, 0)
    yield call("no_channels", 2, 0, 5, 3)
    yield call("no_sequences", 1, 2, 4, 3, lengths=())


def selective_scan_errors(device: torch.device) -> Iterator[ErrorSample]:
    u, A = torch.ones(2, 4, 6, device=device), -torch.ones(4, 3, device=device)
    columns = torch.ones(2, 3, 6, device=device)
    right = (u, u, A, columns, columns)

    def with_argument(i: int, tensor: Tensor) -> tuple[Tensor, ...]:
        return (*right[:i], tensor, *right[i + 1 :])

    groups = torch.ones(2, 3, 3, 6, device=device)
    tensors: dict[str, tuple[tuple[Tensor, ...], type[Exception], str]] = {
        "integers": (with_argument(0, u.int()), TypeError, "u of dtype"),
        "delta_dtype": (with_argument(1, u.double()), TypeError, "delta of u's dtype"),
        "A_dtype": (with_argument(2, A.bfloat16()), TypeError, "A of u's dtype"),
        "B_dtype": (with_argument(3, columns.half()), TypeError, "B of u's dtype"),
        "two_dims": (with_argument(0, u[0]), RuntimeError, r"u of shape \[B, D, L\]"),
        "A_dims": (with_argument(2, A[0]), RuntimeError, r"A of shape \[D, N\]"),
        "A_channels": (with_argument(2, A[:3]), RuntimeError, r"A of shape \[4, 3\]"),
        "delta_shape": (with_argument(1, u[:, :3]), RuntimeError, "delta"),
        "B_dims": (with_argument(3, columns[0]), RuntimeError, r"\[B, G, N, L\]"),
        "B_states": (with_argument(3, columns[:, :2]), RuntimeError, r"B of shape \[2, 3, 6\]"),
        "C_as_B": (with_argument(4, columns[:, None]), RuntimeError, r"C of shape \[2, 3, 6\]"),
        "groups": ((*right[:3], groups, groups), RuntimeError, "divide D = 4, got 3"),
    }
    for name, (args, error, match) in tensors.items():
        yield ErrorSample(name, args, {}, error, match)
    options: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
        "z_dtype": ({"z": u.double()}, TypeError, "z of u's dtype"),
        "state_dtype": (
            {"initial_state": torch.ones(2, 4, 3).bfloat16()},
            TypeError,
            "initial_state of dtype Float",
        ),
        "D_shape": ({"D": u[0, :3, 0]}, RuntimeError, r"D of shape \[4\]"),
        "z_shape": ({"z": u[..., :5]}, RuntimeError, "z of shape"),
        "bias_shape": ({"delta_bias": u[0, 0]}, RuntimeError, "delta_bias"),
        "state_shape": ({"initial_state": torch.ones(2, 4, 2)}, RuntimeError, "initial_state"),
    }
    for name, (kwargs, error, match) in options.items():
        yield ErrorSample(name, right, kwargs, error, match)
    one = (u[:1], u[:1], A, columns[:1], columns[:1])
    yield from pack_errors(right, one, 6)


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
    Operator(
        name="selective_scan",
        samples=selective_scan_samples,
        errors=selective_scan_errors,
        reference=reference.selective_scan,
        differentiable=(0, 1, 2, 3, 4, "D", "z", "delta_bias", "initial_state"),
        autocast="float32",
    ),
)
