"""Tables of cosines and sines for :func:`fulgurite.nn.functional.rope`.

One rotation, many tables: extending the context or adding a second dimension changes the angles
only. Every table is computed in float64 and rounded to float32 once.
"""

import math

import torch
from torch import Tensor

from fulgurite._numbers import integer, number, optional_number


def _frequencies(name: str, dim: int, base: float, device: torch.device | None) -> Tensor:
    """``base^(-2i/dim)``, (R/2) in float64, falling."""
    dim = integer(name, "dim", dim)
    if dim <= 0 or dim % 2 != 0:
        raise ValueError(f"{name}: expected an even, positive dim, got {dim}")
    base = number(name, "base", base, above=0)
    exponents = torch.arange(dim // 2, dtype=torch.float64, device=device) * (-2.0 / dim)
    return torch.pow(base, exponents)


def _table(
    name: str, length: int, start: int, frequencies: Tensor, amplitude: float = 1.0
) -> tuple[Tensor, Tensor]:
    """``amplitude`` times cosines and sines, (N, R/2) in float32."""
    length, start = integer(name, "length", length, 0), integer(name, "start", start)
    positions = torch.arange(start, start + length, dtype=torch.float64, device=frequencies.device)
    angles = positions[:, None] * frequencies  # (N, R/2)
    cos, sin = amplitude * angles.cos(), amplitude * angles.sin()
    return cos.to(torch.float32), sin.to(torch.float32)


def rotary_table(
    length: int,
    dim: int,
    base: float = 10000.0,
    start: int = 0,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles of ``length`` consecutive positions.

    ``angle[n, i] = (start + n) · base^(-2i/dim)``, computed in float64 and rounded once.
    RoFormer, https://arxiv.org/abs/2104.09864.

    Args:
        length: number of positions N.
        dim: number of rotated dims R of a head; even.
        base: wavelength base; 10000 in RoFormer, larger for longer contexts.
        start: position of the first row; the number of keys already cached when decoding.
        device: where the table is made.

    Returns:
        ``(cos, sin)``, each (N, R/2), float32: what :func:`fulgurite.nn.functional.rope` takes.

    Raises:
        ValueError: ``dim`` is odd or not positive; ``length`` is negative; ``base`` is not above 0
            and finite. TypeError: what is no number. So do all tables.

    >>> cos, sin = rotary_table(3, 4)
    >>> cos.shape, cos.dtype
    (torch.Size([3, 2]), torch.float32)
    >>> torch.allclose(cos**2 + sin**2, torch.ones(3, 2))
    True
    """
    name = "rotary_table"
    return _table(name, length, start, _frequencies(name, dim, base, device))


def rotary_table_interpolated(
    length: int,
    dim: int,
    factor: float,
    base: float = 10000.0,
    start: int = 0,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Position interpolation: every angle of :func:`rotary_table` divided by ``factor``.

    Positions up to ``factor`` times the trained length then stay inside the trained range.
    Chen et al., https://arxiv.org/abs/2306.15595.

    Args:
        length, dim, base, start, device: as in :func:`rotary_table`.
        factor: new length over trained length, at least 1.

    Returns:
        ``(cos, sin)``, each (N, R/2), float32.

    Raises:
        ValueError: ``dim`` is odd or not positive; ``factor`` is below 1 or not finite.

    >>> cos, _ = rotary_table_interpolated(9, 4, factor=4.0)
    >>> torch.equal(cos[::4], rotary_table(3, 4)[0])
    True
    """
    name = "rotary_table_interpolated"
    factor = number(name, "factor", factor, at_least=1)
    return _table(name, length, start, _frequencies(name, dim, base, device) / factor)


def rotary_table_ntk(
    length: int,
    dim: int,
    factor: float,
    base: float = 10000.0,
    start: int = 0,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """NTK-aware scaling: :func:`rotary_table` with the base ``base · factor^(dim/(dim - 2))``.

    The lowest frequency is divided by ``factor``, as position interpolation does; the highest,
    which tells neighbours apart, does not change. Section 3.1 of https://arxiv.org/abs/2309.00071.

    Args:
        length, dim, base, start, device: as in :func:`rotary_table`; ``dim`` is at least 4, for a
            lowest frequency that is not also the highest.
        factor: new length over trained length, at least 1.

    Returns:
        ``(cos, sin)``, each (N, R/2), float32.

    Raises:
        ValueError: ``dim`` is odd or below 4; ``factor`` is below 1 or not finite.

    >>> cos, _ = rotary_table_ntk(9, 4, factor=4.0)
    >>> plain, _ = rotary_table(9, 4)
    >>> torch.equal(cos[:, 0], plain[:, 0]), torch.equal(cos[::4, 1], plain[:3, 1])
    (True, True)
    """
    name = "rotary_table_ntk"
    factor = number(name, "factor", factor, at_least=1)
    if dim == 2:
        raise ValueError(f"{name}: expected dim of at least 4, got 2")
    frequencies = _frequencies(name, dim, base, device)
    # As a factor per frequency rather than as a larger base: the ends are exact.
    slowest = dim // 2 - 1
    exponents = torch.arange(slowest + 1, dtype=torch.float64, device=device) / -slowest
    return _table(name, length, start, frequencies * torch.pow(factor, exponents))


def rotary_table_yarn(
    length: int,
    dim: int,
    factor: float,
    trained_length: int,
    base: float = 10000.0,
    start: int = 0,
    device: torch.device | None = None,
    *,
    fast: float = 32.0,
    slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
) -> tuple[Tensor, Tensor]:
    """YaRN: fast dims as trained, slow dims interpolated, a linear ramp between them.

    ::

        r(n)     = dim · ln(trained_length / (2π n)) / (2 ln base)     the dim that turns n times
        low, high = ⌊r(fast)⌋, ⌈r(slow)⌉                               inside [0, dim - 1]
        ramp_i   = clamp((i - low) / (high - low), 0, 1)
        angle[n, i] = (start + n) · base^(-2i/dim) · ((1 - ramp_i) + ramp_i / factor)

    Both tables are multiplied by the attention factor, so that the scores grow by its square.
    Peng et al., https://arxiv.org/abs/2309.00071, as in https://github.com/jquesnelle/yarn.

    Args:
        length, dim, base, start, device: as in :func:`rotary_table`; ``base`` is above 1.
        factor: new length over trained length s, at least 1.
        trained_length: positions that the model was trained on.
        fast: dims with at least so many rotations over the trained length stay as they are.
        slow: dims with at most so many are interpolated.
        truncate: round the ends of the ramp outwards to whole dims, as the reference code does;
            gpt-oss does not.
        attention_factor: None is ``0.1 · ln s + 1``. Models that put it into the softmax scale
            instead (DeepSeek) pass 1.

    Returns:
        ``(cos, sin)``, each (N, R/2), float32.

    Raises:
        ValueError: ``dim`` is odd or not positive; ``factor`` is below 1 or not finite;
            ``trained_length`` is not positive; ``base`` is not above 1; ``fast`` is not above
            ``slow`` or that not above 0; ``attention_factor`` is not above 0.

    >>> cos, sin = rotary_table_yarn(4, 64, factor=4.0, trained_length=2048)
    >>> round(float((cos**2 + sin**2).sqrt().mean()), 4)  # 0.1 · ln 4 + 1
    1.1386
    """
    name = "rotary_table_yarn"
    factor = number(name, "factor", factor, at_least=1)
    trained_length = integer(name, "trained_length", trained_length, 1)
    base = number(name, "base", base, above=1)
    slow = number(name, "slow", slow, above=0)
    fast = number(name, "fast", fast, above=slow)
    attention_factor = optional_number(name, "attention_factor", attention_factor, above=0)
    frequencies = _frequencies(name, dim, base, device)

    def turning(rotations: float) -> float:
        ratio = trained_length / (2.0 * math.pi * rotations)
        return dim * math.log(ratio) / (2.0 * math.log(base))

    low, high = turning(fast), turning(slow)
    if truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = (min(max(end, 0.0), dim - 1.0) for end in (low, high))
    if low == high:
        high += 1e-3  # a step instead of 0/0
    dims = torch.arange(dim // 2, dtype=torch.float64, device=device)
    ramp = ((dims - low) / (high - low)).clamp(0.0, 1.0)  # (R/2)
    if attention_factor is None:
        attention_factor = 0.1 * math.log(factor) + 1.0
    scaled = frequencies * ((1.0 - ramp) + ramp / factor)
    return _table(name, length, start, scaled, amplitude=attention_factor)


def rotary_table_2d(
    height: int,
    width: int,
    dim: int,
    base: float = 10000.0,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Two-dimensional rotary angles of a grid of patches, as MoonViT turns them.

    With ``frequency[i] = base^(-4i/dim)``, the patch in row y and column x turns pair 2i by
    ``x · frequency[i]`` and pair 2i + 1 by ``y · frequency[i]``. Pairs are neighbouring dims:
    ``rope(x, cos, sin, interleaved=True)``. Tables of several images concatenate along N.
    Kimi-VL, https://arxiv.org/abs/2504.07491; the columns come first in the released code,
    https://huggingface.co/moonshotai/MoonViT-SO-400M.

    Args:
        height, width: patches of the grid; patch n is in row ``n // width``, column ``n % width``.
        dim: number of rotated dims R of a head, a multiple of 4.
        base: wavelength base.
        device: where the table is made.

    Returns:
        ``(cos, sin)``, each (height · width, R/2), float32.

    Raises:
        ValueError: ``dim`` is not a positive multiple of 4.

    >>> cos, sin = rotary_table_2d(2, 3, dim=8)
    >>> cos.shape
    torch.Size([6, 4])
    >>> torch.equal(cos[:3, 0::2], rotary_table(3, 4)[0])  # along a row, the column counts
    True
    """
    name = "rotary_table_2d"
    height, width = integer(name, "height", height, 0), integer(name, "width", width, 0)
    dim = integer(name, "dim", dim)
    if dim <= 0 or dim % 4 != 0:
        raise ValueError(f"{name}: expected dim a positive multiple of 4, got {dim}")
    # A head of dim/2 in each direction: base^(-2i/(dim/2)).
    frequencies = _frequencies(name, dim // 2, base, device)
    along_x, along_y = (_table(name, n, 0, frequencies) for n in (width, height))
    shape = (height, width, dim // 4)
    cos, sin = (
        torch.stack([of_x.expand(shape), of_y[:, None].expand(shape)], dim=-1)  # (h, w, R/4, 2)
        .flatten(2)
        .flatten(0, 1)
        for of_x, of_y in zip(along_x, along_y, strict=True)
    )
    return cos, sin
