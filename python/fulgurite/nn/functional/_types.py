"""The types of functions that return ``out``, or ``(out, lse)`` with ``return_lse=True``."""

from __future__ import annotations

from typing import Literal, Protocol, TypedDict, Unpack, overload

from torch import Tensor


class VarlenOptions(TypedDict, total=False):
    """Keyword arguments of :func:`fulgurite.nn.functional.attention_varlen`."""

    sink: Tensor | None
    alibi_slopes: Tensor | None
    scale: float | None
    causal: bool
    align: str
    window_left: int
    window_right: int
    sink_tokens: int
    softcap: float
    dropout_p: float
    philox: Tensor | None


class AttentionOptions(VarlenOptions, total=False):
    """Keyword arguments of :func:`fulgurite.nn.functional.attention`."""

    bias: Tensor | None
    mask: Tensor | None
    block_layout: Tensor | None
    block_size: int
    chunk_size: int
    score: str
    score_scale: float


class AttentionFunction(Protocol):
    @overload
    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        return_lse: Literal[False] = ...,
        **options: Unpack[AttentionOptions],
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        return_lse: Literal[True],
        **options: Unpack[AttentionOptions],
    ) -> tuple[Tensor, Tensor]: ...


class VarlenFunction(Protocol):
    @overload
    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        *,
        return_lse: Literal[False] = ...,
        **options: Unpack[VarlenOptions],
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        *,
        return_lse: Literal[True],
        **options: Unpack[VarlenOptions],
    ) -> tuple[Tensor, Tensor]: ...
