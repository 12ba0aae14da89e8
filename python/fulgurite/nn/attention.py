"""Multi-head attention with grouped queries, rotary positions, QK-norm and sliding windows."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from fulgurite._numbers import integer, optional_number
from fulgurite.nn import functional as F
from fulgurite.nn.cache import check_cache, check_decode_mask
from fulgurite.nn.functional._inputs import check_float_input
from fulgurite.nn.norm import RMSNorm
from fulgurite.nn.rotary import rotary_table as rotary_table


class Attention(nn.Module):
    """Self-attention: ``out(attention(rope(q_norm(q)), rope(k_norm(k)), v))`` of one projection.

    Query head h reads key/value head ``h // (num_heads // num_kv_heads)``. Positions attend
    bottom-right aligned, as :func:`fulgurite.nn.functional.attention` does.

    Args:
        dim: width of the input and of the output.
        num_heads: query heads Hq.
        num_kv_heads: key/value heads Hkv, dividing ``num_heads``; None means as many (1 is MQA).
        head_dim: width D of a head; None means ``dim // num_heads``, which must then divide evenly.
        causal: a position sees itself and what is before it.
        window: how many positions before itself a position sees; -1 for no limit. Without
            ``causal`` it sees as many after itself.
        qk_norm: RMS-normalise every query and key head with a learned weight (D) before rotation.
        interleaved: rotate neighbouring dims (GPT-J) rather than halves (GPT-NeoX, Llama).
        bias: add a bias in both projections.
        scale: factor on q·k; None means ``head_dim ** -0.5``.
        eps: added to the mean square by ``qk_norm``.
        device, dtype: of the parameters.

    Parameters: ``qkv.weight`` ((Hq + 2·Hkv)·D, dim), holding query, key and value heads in that
    order; ``out.weight`` (dim, Hq·D); ``q_norm.weight`` and ``k_norm.weight`` (D) with ``qk_norm``.

    Raises:
        ValueError: head counts, widths or window that do not fit together, numbers that make no
            sense; TypeError: what is no number.

    >>> attention = Attention(32, num_heads=4, num_kv_heads=2, window=8)
    >>> cos, sin = rotary_table(16, dim=8)
    >>> attention(torch.randn(2, 16, 32), cos, sin).shape
    torch.Size([2, 16, 32])
    """

    __constants__: ClassVar = [
        "dim",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "causal",
        "window_left",
        "window_right",
        "qk_norm",
        "interleaved",
        "scale",
    ]

    scale: float | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        causal: bool = True,
        window: int = -1,
        qk_norm: bool = False,
        interleaved: bool = False,
        bias: bool = False,
        scale: float | None = None,
        eps: float = 1e-6,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "Attention"
        dim, num_heads = integer(name, "dim", dim, 1), integer(name, "num_heads", num_heads, 1)
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        kv_heads = integer(name, "num_kv_heads", kv_heads, 1)
        if num_heads % kv_heads != 0:
            raise ValueError(
                f"Attention: expected num_kv_heads to divide num_heads, "
                f"got {kv_heads} and {num_heads}"
            )
        if head_dim is None and dim % num_heads != 0:
            raise ValueError(
                f"Attention: expected num_heads to divide dim, got {num_heads} and {dim}; "
                "give head_dim otherwise"
            )
        window = integer(name, "window", window, -1)
        self.dim = dim
        self.num_heads = num_heads
        self.num_kv_heads = kv_heads
        head_dim = dim // num_heads if head_dim is None else head_dim
        self.head_dim = integer(name, "head_dim", head_dim, 1)
        self.causal = causal
        self.window_left = window
        self.window_right = -1 if causal else window
        self.qk_norm = qk_norm
        self.interleaved = interleaved
        self.scale = optional_number(name, "scale", scale)
        projected = (num_heads + 2 * kv_heads) * self.head_dim
        self.qkv = nn.Linear(dim, projected, bias=bias, device=device, dtype=dtype)
        self.out = nn.Linear(num_heads * self.head_dim, dim, bias=bias, device=device, dtype=dtype)
        self.q_norm: nn.Module
        self.k_norm: nn.Module
        if qk_norm:
            self.q_norm = RMSNorm(self.head_dim, eps=eps, device=device, dtype=dtype)
            self.k_norm = RMSNorm(self.head_dim, eps=eps, device=device, dtype=dtype)
        else:
            self.q_norm = nn.Identity()
            self.k_norm = nn.Identity()

    def reset_parameters(self) -> None:
        """Draw both projections as :class:`torch.nn.Linear` does; the norms' weights are 1."""
        for module in (self.qkv, self.out, self.q_norm, self.k_norm):
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()

    def forward(
        self,
        x: Tensor,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: (B, N, dim).
            cos, sin: (N, R/2) or broadcastable to (B, heads, N, R/2), R ≤ head_dim, from
                :func:`rotary_table`; both or neither.
            mask: bool, True keeps, broadcastable to (B, Hq, N, N).

        Returns:
            (B, N, dim), in x's dtype (autocast's, inside autocast).

        Raises:
            ValueError: one of ``cos`` and ``sin`` without the other.
            RuntimeError: an x that is not (B, N, dim).
        """
        query, key, value = self._project(x, cos, sin)
        attended = F.attention(
            query,
            key,
            value,
            mask=mask,
            scale=self.scale,
            causal=self.causal,
            window_left=self.window_left,
            window_right=self.window_right,
        )  # (B, Hq, N, D)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out

    @torch.jit.export
    def make_cache(
        self,
        batch: int,
        length: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """An empty cache for :meth:`decode`.

        Args:
            batch: sequences B.
            length: keys Mmax that each of them has room for.
            dtype, device: of the cache; None means those of ``qkv.weight``. Where ``qkv`` was
                replaced (a LoRA layer, a quantised one) and has no such tensor, give both.

        Returns:
            ``(keys, values, lengths)``: two (batch, Hkv, length, D), and (batch) int64 zeros.

        Raises:
            ValueError: a negative size.
            RuntimeError: neither dtype and device nor a weight of ``qkv`` that says them.
        """
        if batch < 0 or length < 0:
            raise ValueError(
                f"Attention: expected batch and length of at least 0, got {batch} and {length}"
            )
        if dtype is None or device is None:
            weight = self._cache_like()
            dtype = weight.dtype if dtype is None else dtype
            device = weight.device if device is None else device
        shape = [batch, self.num_kv_heads, length, self.head_dim]
        keys = torch.zeros(shape, dtype=dtype, device=device)
        values = torch.zeros(shape, dtype=dtype, device=device)
        return keys, values, torch.zeros([batch], dtype=torch.int64, device=device)

    def _cache_like(self) -> Tensor:
        """The weight of ``qkv``."""
        if hasattr(self.qkv, "weight"):
            weight = self.qkv.weight
            if isinstance(weight, Tensor) and weight.is_floating_point():
                return weight
        raise RuntimeError(
            "Attention: expected qkv to have a floating-point weight, which says the cache's dtype "
            "and device; give make_cache both"
        )

    @torch.jit.export
    def decode(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        lengths: Tensor,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend to everything cached and to N new tokens, which join the cache. No gradient.

        A call that raises has left the cache as it was.

        Args:
            x: (B, N, dim), the new tokens; sequence b continues at position ``lengths[b]``. B and
                N may be 0.
            keys, values, lengths: from :meth:`make_cache`; written, ``lengths`` grow by N.
            cos, sin: of the new positions: (N, R/2), or (B, 1, N, R/2) where lengths differ.
            mask: bool, True keeps, broadcastable to (B, Hq, N, Mmax).

        Returns:
            (B, N, dim).

        Raises:
            ValueError: one of ``cos`` and ``sin`` without the other; a module that is not causal.
            TypeError: a mask that is not bool; caches that differ in dtype; lengths that are not
                integers.
            RuntimeError: x, a cache or a mask of another shape; the cache is full; inputs or
                weights that need a gradient outside of ``torch.no_grad()``.

        >>> attention = Attention(32, num_heads=4, num_kv_heads=2)
        >>> keys, values, lengths = attention.make_cache(2, 64)
        >>> with torch.no_grad():
        ...     out = attention.decode(torch.randn(2, 5, 32), keys, values, lengths)
        >>> out.shape, lengths
        (torch.Size([2, 5, 32]), tensor([5, 5]))
        """
        if not self.causal:
            raise ValueError("Attention: expected causal=True for decode, got False")
        query, key, value = self._project(x, cos, sin)
        if query.requires_grad or key.requires_grad or value.requires_grad:
            raise RuntimeError(
                "Attention: expected decode without gradients, got x or weights that require one; "
                "call it inside torch.no_grad() or torch.inference_mode()"
            )
        new, room = x.size(1), keys.size(2) if keys.dim() == 4 else 0
        check_cache(query, key, keys, values, lengths)
        check_decode_mask(mask, [x.size(0), self.num_heads, new, room])
        index = lengths.to(torch.int64)[:, None] + torch.arange(
            new, dtype=torch.int64, device=x.device
        )  # (B, N)
        if index.numel() > 0:
            first, last = int(index.min()), int(index.max())
            if first < 0:
                raise RuntimeError(f"Attention: expected lengths of at least 0, got {first}")
            if last >= room:
                raise RuntimeError(
                    f"Attention: expected room for {last + 1} keys in the cache, got {room}"
                )
        rows = torch.arange(x.size(0), dtype=torch.int64, device=x.device)[:, None]
        keys.transpose(1, 2)[rows, index] = key.transpose(1, 2).to(keys.dtype)
        values.transpose(1, 2)[rows, index] = value.transpose(1, 2).to(values.dtype)
        attended, _ = F.attention_decode(
            query.to(keys.dtype),
            keys,
            values,
            lengths + new,
            mask=mask,
            scale=self.scale,
            window_left=self.window_left,
        )
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2).to(x.dtype))
        lengths += new  # last: whatever is written past the lengths does not count
        return out

    def _project(
        self, x: Tensor, cos: Tensor | None, sin: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised and rotated query (B, Hq, N, D) and key, and value (B, Hkv, N, D), strided."""
        check_float_input("Attention", "x", x)
        if x.dim() != 3 or x.size(2) != self.dim:
            raise RuntimeError(
                f"Attention: expected x of shape [B, N, {self.dim}], got {list(x.shape)}"
            )
        batch, length, _ = x.shape
        heads, kv_heads = self.num_heads, self.num_kv_heads
        qkv = self.qkv(x).view(batch, length, heads + 2 * kv_heads, self.head_dim).transpose(1, 2)
        query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
        query, key = self.q_norm(query), self.k_norm(key)
        if cos is not None and sin is not None:
            query = F.rope(query, cos, sin, interleaved=self.interleaved)
            key = F.rope(key, cos, sin, interleaved=self.interleaved)
        elif cos is not None or sin is not None:
            raise ValueError("Attention: expected both cos and sin, or neither")
        return query, key, value

    def extra_repr(self) -> str:
        return (
            f"heads={self.num_heads}, kv_heads={self.num_kv_heads}, head_dim={self.head_dim}, "
            f"causal={self.causal}, window={self.window_left}, qk_norm={self.qk_norm}"
        )
