"""References of the optim family: textbook formulas, one tensor after the other."""

from __future__ import annotations

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
    (``join_master``).
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
