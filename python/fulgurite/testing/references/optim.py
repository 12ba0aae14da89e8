"""References of the optim family: textbook formulas, one tensor after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def adamw_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    masters: list[Tensor],
    copies: list[Tensor],
    emas: list[Tensor],
    steps: list[Tensor],
    hyper: Tensor,
    groups: list[int],
    *,
    grad_multiplier: Tensor | None = None,
    found_inf: Tensor | None = None,
    seed: Tensor | None = None,
    keys: list[int] | None = None,
    decoupled: bool = True,
    amsgrad: bool = False,
    maximize: bool = False,
    zero_grads: bool = False,
) -> list[Tensor]:
    """The new values of every list, flat, in the order of the arguments.

    With t the step that is taken, and everything in the dtypes that come in::

        g = ±grad·multiplier;  p = p·(1 − lr·wd), or without decoupling g = g + wd·p
        m = β1·m + (1−β1)·g;  v = β2·v + (1−β2)·g²
        p = p − lr·(m/(1−β1^t)) / (√(v/(1−β2^t)) + eps)

    Split masters have no reference here: their bits are those of the float32 masters
    (``join_master``). Nor has stochastic rounding, which is of 16 bits: see ``adamw_rounded_``.
    """
    lists = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, masters, copies, emas, steps)
    new = [[tensor.clone() for tensor in tensors] for tensors in lists]
    if found_inf is not None and found_inf.item() > 0:
        return [tensor for tensors in new for tensor in tensors]
    for i, group in enumerate(groups):
        lr, beta1, beta2, eps, weight_decay, ema_decay = hyper[group].tolist()
        t = steps[i].item() + 1
        p = masters[i] if masters and masters[i].numel() else params[i]
        g = grads[i] if grad_multiplier is None else grads[i] * grad_multiplier.item()
        if maximize:
            g = -g
        if decoupled:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        m = beta1 * exp_avgs[i] + (1 - beta1) * g
        v = beta2 * exp_avg_sqs[i] + (1 - beta2) * g * g
        vmax = torch.maximum(max_exp_avg_sqs[i], v) if amsgrad else v
        p = p - lr * (m / (1 - beta1**t)) / ((vmax / (1 - beta2**t)).sqrt() + eps)
        results = (p, torch.zeros_like(g) if zero_grads else grads[i], m, v, vmax, p, p)
        for tensors, result in zip(new[:7], results, strict=True):
            if tensors and tensors[i].numel() and (tensors is not new[4] or amsgrad):
                tensors[i].copy_(result)
        if emas and emas[i].numel():
            new[7][i].copy_(emas[i] + (1 - ema_decay) * (p - emas[i]))
        new[8][i].fill_(t)
    return [tensor for tensors in new for tensor in tensors]


def adamw_rounded_(*args: Any, **options: Any) -> list[Tensor]:
    """The reference in the dtypes that come in; with a seed the step is taken in float32, and
    16-bit parameters without a master are rounded stochastically.
    """
    seed, keys = options.get("seed"), options.get("keys")
    if seed is None:
        return adamw_(*args, **options)
    params, masters, count = args[0], args[5], len(args[0])
    rounded = [
        p.dtype in (torch.bfloat16, torch.float16) and (not masters or masters[i].numel() == 0)
        for i, p in enumerate(params)
    ]
    wide = [p.float() if own else p for p, own in zip(params, rounded, strict=True)]
    new = adamw_(wide, *args[1:], **options)
    for i in range(count):
        if rounded[i]:
            key = i if keys is None else keys[i]
            new[i] = round_stochastically(new[i], params[i].dtype, seed.tolist(), key)
    return new


def adamw_8bit_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg_codes: list[Tensor],
    exp_avg_scales: list[Tensor],
    exp_avg_sq_codes: list[Tensor],
    exp_avg_sq_scales: list[Tensor],
    masters: list[Tensor],
    steps: list[Tensor],
    hyper: Tensor,
    groups: list[int],
    **options: Any,
) -> list[Tensor]:
    """``adamw_`` between reading and writing its moments as codes of the dynamic map, in blocks of
    256 elements in row-major order.
    """
    exp_avgs = [
        dequantize(codes, scales, True)
        for codes, scales in zip(exp_avg_codes, exp_avg_scales, strict=True)
    ]
    exp_avg_sqs = [
        dequantize(codes, scales, False)
        for codes, scales in zip(exp_avg_sq_codes, exp_avg_sq_scales, strict=True)
    ]
    found_inf = options.get("found_inf")
    if found_inf is not None and found_inf.item() > 0:
        same = (params, grads, exp_avg_codes, exp_avg_scales, exp_avg_sq_codes, exp_avg_sq_scales)
        return [tensor for tensors in (*same, masters, steps) for tensor in tensors]
    new = adamw_rounded_(
        params, grads, exp_avgs, exp_avg_sqs, [], masters, [], [], steps, hyper, groups, **options
    )
    n = len(params)
    moments = [quantize(m, True) for m in new[2 * n : 3 * n]]
    moments_sq = [quantize(v, False) for v in new[3 * n : 4 * n]]
    states = [[part[k] for part in found] for found in (moments, moments_sq) for k in (0, 1)]
    return [*new[: 2 * n], *(tensor for tensors in states for tensor in tensors), *new[4 * n :]]


def dynamic_map(signed: bool) -> Tensor:
    """The 256 values of the dynamic map, sorted, as float64: see csrc/optim/rules/dynamic_map.h."""
    values = [0.0, 1.0]
    for i in range(7):
        parts = 2**i if signed else 2 ** (i + 1)
        own = [10.0 ** (i - 6) * (0.1 + 0.9 * (j + 0.5) / parts) for j in range(parts)]
        values += own + ([-x for x in own] if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float64).float().double()


def quantize(values: Tensor, signed: bool, block: int = 256) -> tuple[Tensor, Tensor]:
    """Codes in the shape of the values, and the largest magnitude of each block."""
    flat = values.double().reshape(-1)
    table = dynamic_map(signed)
    codes, scales = [], []
    for part in flat.split(block) if flat.numel() else ():
        scale = part.abs().max().float().double()
        scales.append(scale)
        usable = bool(scale > 0) and bool(scale.isfinite())
        quotient = part / scale if usable else torch.zeros_like(part)
        codes.append((quotient[:, None] - table).abs().argmin(1))
    joined = torch.cat(codes) if codes else flat
    return (
        joined.to(torch.uint8).reshape(values.shape),
        torch.stack(scales) if scales else flat.new_empty(0),
    )


def dequantize(codes: Tensor, scales: Tensor, signed: bool, block: int = 256) -> Tensor:
    """map[code]·scale, in the dtype of the scales."""
    table = dynamic_map(signed).to(scales.dtype)
    spread = scales.repeat_interleave(block)[: codes.numel()]
    return table[codes.long()] * spread.reshape(codes.shape)


_ROUND = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def philox_words(seed: int, step: int, key: int, count: int) -> np.ndarray:
    """A word of 32 bits for each of ``count`` elements: number e mod 4 of Philox4x32-10 with the
    seed as key and the counter (⌊e/4⌋ in two words, step, key).
    """
    low = np.uint64(0xFFFFFFFF)
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    c = [
        blocks & low,
        blocks >> np.uint64(32),
        np.full_like(blocks, step & 0xFFFFFFFF),
        np.full_like(blocks, key),
    ]
    k = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    for _ in range(10):
        products = [c[0] * np.uint64(_ROUND[0][0]), c[2] * np.uint64(_ROUND[0][1])]
        c = [
            (products[1] >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            products[1] & low,
            (products[0] >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            products[0] & low,
        ]
        k = [(word + add) & 0xFFFFFFFF for word, add in zip(k, _ROUND[1], strict=True)]
    return np.stack(c, axis=1).reshape(-1)[:count]


def round_stochastically(values: Tensor, dtype: torch.dtype, seed: list[int], key: int) -> Tensor:
    """To the neighbour further from zero where the word is below 2³² times the fraction that
    rounding towards zero cuts off.
    """
    exact = values.double().contiguous()
    info = torch.finfo(dtype)
    exponent = torch.frexp(exact.abs().clamp(min=info.tiny))[1] - 1  # 2^exponent ≤ |x|
    unit = torch.ldexp(torch.full_like(exact, info.eps), exponent)
    units = exact.abs() / unit
    words = philox_words(seed[0], seed[1], key, exact.numel()).astype(np.float64)
    up = torch.from_numpy(words).reshape(exact.shape) < 2.0**32 * (units - units.floor())
    rounded = torch.copysign((units.floor() + up) * unit, exact)
    return torch.where(exact.isfinite(), rounded, exact).to(dtype)


def split_master(master: Tensor) -> tuple[Tensor, Tensor]:
    """Exact: the bits of each float32, rounded half away from zero at the 16th, and what that
    leaves.
    """
    bits = master.float().contiguous().numpy().view(np.uint32).astype(np.int64)
    nan = np.isnan(master.float().numpy())
    high = np.where(nan, (bits >> 16) | 0x40, (bits + 0x8000) >> 16)
    low = np.where(nan, 0, bits - (high << 16))
    return bfloat16_from_bits(high), torch.from_numpy(low.astype(np.int16))


def join_master(high: Tensor, low: Tensor) -> Tensor:
    """Exact: (high << 16) + low as the bits of a float32."""
    bits = high.bfloat16().contiguous().view(torch.int16).numpy().astype(np.int64)
    joined = ((bits << 16) + low.numpy()) & 0xFFFFFFFF
    return torch.from_numpy(joined.astype(np.uint32).view(np.float32))


def bfloat16_from_bits(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16)
