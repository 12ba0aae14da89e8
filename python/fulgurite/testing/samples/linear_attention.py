"""Sample calls of linear attention.

B batch, H heads, Hk heads of query and key, N queries, M keys, D and Dv widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.references.linear_attention import linear_attention
from fulgurite.testing.registry import ErrorSample, Operator, Sample
from fulgurite.testing.samples.attention_cache import offsets
from fulgurite.testing.samples.linear import pack_errors
from fulgurite.testing.samples.moe import normal


def linear_attention_samples(
    dtype: torch.dtype, device: torch.device, seed: int
) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def call(
        name: str,
        B: int,
        H: int,
        N: int,
        D: int,
        Dv: int,
        *,
        Hk: int | None = None,
        M: int | None = None,
        decay: int = 0,
        of: torch.dtype = dtype,
        bonus: bool = False,
        state: bool = False,
        lengths: tuple[int, ...] | None = None,
        positive: bool = False,
        **options: Any,
    ) -> Sample:
        """``decay`` is the number of log_decay's dimensions."""
        Hk, M = H if Hk is None else Hk, N if M is None else M

        def heads(length: int) -> Tensor:
            """Positions before heads in memory, as projections give them."""
            t = normal(generator, dtype, device, B, length, Hk, D).transpose(1, 2)
            return t if t.numel() else t.new_empty(B, Hk, length, D)

        query, key = heads(N), heads(M) * max(D, 1) ** -0.5
        if positive:
            query, key = query.abs() + 0.25, key.abs() + 0.25
        value = normal(generator, dtype, device, B, H, M, Dv)
        kwargs: dict[str, Any] = dict(options)
        if decay:
            shape = {1: (H,), 3: (B, H, N), 4: (B, H, N, D)}[decay]
            kwargs["log_decay"] = -normal(generator, of, device, *shape).abs()
        if bonus:
            kwargs["bonus"] = normal(generator, of, device, H, D)
        sequences = B
        if lengths is not None:
            kwargs["cu_seqlens"] = offsets(device, torch.int32, *lengths)
            sequences = len(lengths)
        if state:
            kwargs["initial_state"] = normal(generator, wide, device, sequences, H, D, Dv)
            if kwargs.get("normalize"):
                norm = normal(generator, wide, device, sequences, H, D).abs() + 0.25
                kwargs["initial_norm"] = norm
        return Sample(name, (query, key, value), kwargs)

    yield call("positions", 2, 4, 20, 5, 6, Hk=2, decay=3, of=wide, state=True, scale=0.5)
    yield call(
        "packed_normalized", 1, 2, 24, 6, 5, lengths=(7, 0, 2, 12), decay=3,
        state=True, positive=True, normalize=True, eps=1e-3,
    )  # fmt: skip
    yield call("features", 1, 3, 37, 9, 10, decay=4, state=True)
    yield call("features_packed", 1, 2, 26, 5, 4, decay=4, of=wide, lengths=(17, 1, 5))
    yield call("bonus_features", 1, 2, 21, 6, 7, decay=4, bonus=True, of=wide, state=True)
    yield call("bonus_positions", 2, 4, 18, 5, 8, Hk=1, decay=3, bonus=True)
    yield call("heads", 2, 3, 19, 4, 5, decay=1, state=True)
    yield call("chunks", 1, 2, 70, 4, 3, decay=3, Hk=1)
    yield call("plain", 1, 9, 33, 3, 37, scale=2.0)
    yield call("exclusive", 1, 2, 22, 5, 4, exclusive_chunk=5, decay=3, state=True)
    yield call("exclusive_features", 1, 2, 22, 5, 4, exclusive_chunk=3, decay=4, state=True)
    yield call("exclusive_long", 1, 2, 41, 4, 4, exclusive_chunk=18, decay=4, state=True)
    yield call(
        "not_causal", 2, 4, 9, 5, 6, Hk=2, M=15, causal=False, normalize=True,
        positive=True, state=True,
    )  # fmt: skip
    yield call("not_causal_packed", 1, 2, 16, 4, 5, causal=False, lengths=(5, 0, 9), state=True)
    yield call("one_position", 3, 2, 1, 8, 9, decay=3, state=True)
    yield call("wide", 1, 1, 5, 70, 66, decay=3, state=True)
    yield call("no_positions", 2, 3, 0, 4, 5, decay=4, state=True)
    yield call("no_features", 2, 2, 5, 0, 3, decay=3)
    yield call("no_values", 1, 2, 5, 3, 0, decay=3, state=True)
    yield call("no_heads", 2, 0, 5, 3, 4, decay=3)
    yield call("no_sequences", 1, 2, 4, 3, 5, lengths=(), decay=3)


def linear_attention_errors(device: torch.device) -> Iterator[ErrorSample]:
    query, value = torch.ones(2, 2, 6, 3, device=device), torch.ones(2, 4, 6, 5, device=device)
    right = (query, query, value)

    def with_argument(i: int, tensor: Tensor) -> tuple[Tensor, ...]:
        return (*right[:i], tensor, *right[i + 1 :])

    tensors: dict[str, tuple[tuple[Tensor, ...], type[Exception], str]] = {
        "integers": (with_argument(0, query.int()), TypeError, "query of dtype"),
        "key_dtype": (with_argument(1, query.double()), TypeError, "key of query's dtype"),
        "value_dtype": (with_argument(2, value.half()), TypeError, "value of query's dtype"),
        "three_dims": (with_argument(0, query[0]), RuntimeError, r"query of shape \[B, Hk, N, D\]"),
        "key_dims": (with_argument(1, query[0]), RuntimeError, r"key of shape \[B, Hk, M, D\]"),
        "value_dims": (with_argument(2, value[0]), RuntimeError, r"\[B, H, M, Dv\]"),
        "key_positions": (
            with_argument(1, query[:, :, 1:]),
            RuntimeError,
            r"key of shape \[2, 2, 6, 3\]",
        ),
        "key_width": (with_argument(1, query[..., 1:]), RuntimeError, r"\[2, 2, 6, 3\], got"),
        "value_positions": (with_argument(2, value[:, :, 1:]), RuntimeError, "value of shape"),
        "heads": (with_argument(2, value[:, :3]), RuntimeError, "divide H = 3, got 2"),
    }
    for name, (args, error, match) in tensors.items():
        yield ErrorSample(name, args, {}, error, match)
    decay, state = -torch.ones(2, 4, 6, device=device), torch.ones(2, 4, 3, 5, device=device)
    bonus = torch.ones(4, 3, device=device)
    options: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
        "decay_dtype": ({"log_decay": decay.half()}, TypeError, "log_decay of query's dtype"),
        "bonus_dtype": ({"bonus": bonus.double()}, TypeError, "bonus of query's dtype"),
        "state_dtype": ({"initial_state": state.half()}, TypeError, "initial_state of dtype Float"),
        "norm_dtype": ({"initial_norm": state[..., 0].half()}, TypeError, "initial_norm of dtype"),
        "decay_dims": ({"log_decay": decay[0]}, RuntimeError, r"\[H\], \[B, H, N\] or"),
        "decay_heads": ({"log_decay": decay[0, :3, 0]}, RuntimeError, r"shape \[4\]"),
        "decay_shape": ({"log_decay": decay[:, :, 1:]}, RuntimeError, r"shape \[2, 4, 6\]"),
        "decay_width": ({"log_decay": decay[..., None]}, RuntimeError, r"\[2, 4, 6, 3\]"),
        "bonus_shape": ({"bonus": bonus[:2]}, RuntimeError, r"bonus of shape \[4, 3\]"),
        "state_shape": ({"initial_state": state[1:]}, RuntimeError, r"\[2, 4, 3, 5\]"),
        "norm_shape": ({"initial_norm": state}, RuntimeError, r"initial_norm of shape \[2, 4, 3\]"),
        "scale": ({"scale": float("nan")}, ValueError, "scale finite"),
        "eps": ({"eps": -1.0}, ValueError, "eps finite and >= 0"),
        "exclusive": ({"exclusive_chunk": -1}, ValueError, "exclusive_chunk >= 0"),
        "not_causal_decay": ({"causal": False, "log_decay": decay}, ValueError, "got log_decay"),
        "not_causal_bonus": ({"causal": False, "bonus": bonus}, ValueError, "got bonus"),
        "not_causal_exclusive": (
            {"causal": False, "exclusive_chunk": 2},
            ValueError,
            "got exclusive_chunk",
        ),
        "normalize_bonus": ({"normalize": True, "bonus": bonus}, ValueError, "no bonus or"),
        "normalize_exclusive": (
            {"normalize": True, "exclusive_chunk": 2},
            ValueError,
            "got exclusive_chunk",
        ),
        "bonus_exclusive": ({"bonus": bonus, "exclusive_chunk": 2}, ValueError, "with bonus"),
    }
    for name, (kwargs, error, match) in options.items():
        yield ErrorSample(name, right, kwargs, error, match)
    yield from pack_errors(right, (query[:1], query[:1], value[:1]), 6)
    pack = {"cu_seqlens": torch.tensor([0, 2, 4, 6], device=device), "initial_state": state}
    one = (query[:1], query[:1], value[:1])
    yield ErrorSample("states_of_a_pack", one, pack, RuntimeError, r"\[3, 4, 3, 5\]")


OPERATORS = (
    Operator(
        name="linear_attention",
        samples=linear_attention_samples,
        errors=linear_attention_errors,
        reference=linear_attention,
        differentiable=(0, 1, 2, "log_decay", "bonus", "initial_state", "initial_norm"),
        autocast="lower",
        autocast_args=(0, 1, 2),
    ),
)
