"""Positions along one sequence: ALiBi slopes, T5's relative bias, the log-n factor."""

import math
from bisect import bisect_left

import torch
from torch import Tensor, nn

from fulgurite._numbers import integer


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """ALiBi's slopes, what :func:`fulgurite.nn.functional.attention` takes as ``alibi_slopes``.

    ``2^(-8(h + 1)/H)`` for H a power of two. Otherwise the slopes of the largest power of two P
    below H, followed by every second slope of 2P, as in the authors' code.
    Press et al., https://arxiv.org/abs/2108.12409,
    https://github.com/ofirpress/attention_with_linear_biases.

    Args:
        num_heads: query heads H, at least 1.
        device: where the slopes are made.

    Returns:
        (H), float32. A float64 query wants them as ``.double()``.

    Raises:
        ValueError: ``num_heads`` is below 1.

    >>> alibi_slopes(8).log2().tolist()
    [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0]
    >>> alibi_slopes(3).log2().tolist()
    [-4.0, -8.0, -2.0]
    """
    num_heads = integer("alibi_slopes", "num_heads", num_heads, 1)
    power = 1 << (num_heads.bit_length() - 1)
    steps = [8.0 * (head + 1) / power for head in range(power)]
    between = [4.0 * (head + 1) / power for head in range(0, 2 * power, 2)]
    steps += between[: num_heads - power]
    return torch.tensor([2.0**-step for step in steps], dtype=torch.float32, device=device)


def log_n_scale(
    length: int, trained_length: int, start: int = 0, device: torch.device | None = None
) -> Tensor:
    """Factor of each query that keeps attention as sharp as in training when keys become many.

    ``max(1, ln(i + 1) / ln trained_length)`` for the query at position i, which causally sees i + 1
    keys. Multiply queries by it, before or after rotation: ``query * scale.to(query.dtype)``.
    Chiang and Cholak, https://arxiv.org/abs/2202.12172; Su, https://kexue.fm/archives/8823.

    Args:
        length: number of queries N.
        trained_length: positions that the model was trained on, at least 2.
        start: position of the first query; the number of keys already cached when decoding.
        device: where the factors are made.

    Returns:
        (N, 1), float32, which broadcasts to (B, H, N, D).

    Raises:
        ValueError: ``trained_length`` is below 2, or ``length`` or ``start`` is negative.

    >>> log_n_scale(4, 8, start=6).flatten()
    tensor([1.0000, 1.0000, 1.0566, 1.1073])
    """
    name = "log_n_scale"
    length = integer(name, "length", length, 0)
    trained_length = integer(name, "trained_length", trained_length, 2)
    start = integer(name, "start", start, 0)
    keys = torch.arange(start + 1, start + length + 1, dtype=torch.float64, device=device)
    return (keys.log() / math.log(trained_length)).clamp(min=1.0).to(torch.float32)[:, None]


def _bucket_starts(
    name: str, num_buckets: int, max_distance: int, bidirectional: bool
) -> list[int]:
    """First distance of every bucket but the first.

    Of n buckets of one direction the first e = n // 2 hold one distance each; bucket e + k starts
    at ``e · (max_distance / e)^(k / (n - e))``. In whole numbers, so that no logarithm rounds a
    distance into the bucket next to its own.
    """
    num_buckets = integer(name, "num_buckets", num_buckets, 2)
    max_distance = integer(name, "max_distance", max_distance, 1)
    if bidirectional and (num_buckets < 4 or num_buckets % 2 != 0):
        raise ValueError(f"{name}: expected an even num_buckets of at least 4, got {num_buckets}")
    buckets = num_buckets // 2 if bidirectional else num_buckets
    exact = buckets // 2
    if max_distance <= exact:
        raise ValueError(
            f"{name}: expected max_distance above {exact} for {num_buckets} buckets, "
            f"got {max_distance}"
        )
    logarithmic = buckets - exact
    return list(range(1, exact + 1)) + [
        bisect_left(
            range(max_distance),
            exact ** (logarithmic - k) * max_distance**k,
            key=lambda distance: distance**logarithmic,
        )
        for k in range(1, logarithmic)
    ]


def _bucket(relative: Tensor, starts: Tensor, bidirectional: bool) -> Tensor:
    """Bucket of each j − i', any shape, int64."""
    if not bidirectional:
        return torch.bucketize((-relative).clamp(min=0), starts, right=True)
    bucket = torch.bucketize(relative.abs(), starts, right=True)
    return torch.where(relative > 0, bucket + (starts.size(0) + 1), bucket)


def relative_position_bucket(
    relative_position: Tensor,
    num_buckets: int = 32,
    max_distance: int = 128,
    bidirectional: bool = True,
) -> Tensor:
    """T5's bucket of each relative position: near distances one by one, far ones in log steps.

    Bidirectional, the upper half of the buckets is for keys after the query; otherwise such keys
    are all in bucket 0. The last bucket of a direction holds everything that is farther.
    Raffel et al., https://arxiv.org/abs/1910.10683,
    https://github.com/google-research/text-to-text-transfer-transformer.

    Args:
        relative_position: key's minus query's position, integers of any shape.
        num_buckets: of both directions together; even and at least 4 if bidirectional, else at
            least 2.
        max_distance: where the last bucket's logarithmic step ends; above the number of buckets
            that hold one distance each.
        bidirectional: False for causal attention.

    Returns:
        relative_position's shape, int64, in [0, num_buckets).

    Raises:
        ValueError: ``num_buckets`` or ``max_distance`` as above; positions that are not integers.

    >>> relative_position_bucket(torch.tensor([-200, -20, -1, 0, 1, 20, 200]))
    tensor([15, 10,  1,  0, 17, 26, 31])
    >>> relative_position_bucket(torch.tensor([-200, -20, -1, 0, 1]), bidirectional=False)
    tensor([31, 17,  1,  0,  0])
    """
    name = "relative_position_bucket"
    if relative_position.is_floating_point() or relative_position.is_complex():
        raise ValueError(f"{name}: expected integer positions, got {relative_position.dtype}")
    starts = _bucket_starts(name, num_buckets, max_distance, bidirectional)
    on_device = torch.tensor(starts, dtype=torch.int64, device=relative_position.device)
    return _bucket(relative_position.to(torch.int64), on_device, bidirectional)


class RelativePositionBias(nn.Module):
    """T5's learned bias of a head and a bucket of distances; layers of a model share one.

    ``bias[h, i, j] = weight[bucket(j − i'), h]``: pass it to attention as ``bias``. T5 itself does
    not scale its scores: ``scale=1.0``. See :func:`relative_position_bucket` for the source.

    Args:
        num_heads: query heads H.
        num_buckets, max_distance, bidirectional: as in :func:`relative_position_bucket`.
        device, dtype: of the parameter.

    Parameter: ``weight`` (num_buckets, H), drawn from N(0, 0.02²): the layout of the
    ``relative_attention_bias.weight`` of T5 checkpoints.

    Raises:
        ValueError: ``num_heads`` is below 1; buckets and distance that do not fit together.

    >>> position = RelativePositionBias(num_heads=4, bidirectional=False)
    >>> position(3, 5).shape
    torch.Size([1, 4, 3, 5])
    """

    starts: Tensor

    def __init__(
        self,
        num_heads: int,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "RelativePositionBias"
        num_heads = integer(name, "num_heads", num_heads, 1)
        self.bidirectional = bidirectional
        self.first_distances = _bucket_starts(name, num_buckets, max_distance, bidirectional)
        starts = torch.tensor(self.first_distances, dtype=torch.int64, device=device)
        self.register_buffer("starts", starts, persistent=False)
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 0.02²), and set where buckets start."""
        nn.init.normal_(self.weight, std=0.02)
        starts = torch.tensor(self.first_distances, dtype=torch.int64, device=self.starts.device)
        self.starts.copy_(starts)

    def forward(
        self, query_length: int, key_length: int, query_offset: int | None = None
    ) -> Tensor:
        """Bias of N queries and M keys.

        Args:
            query_length, key_length: N and M.
            query_offset: position of the first query among the keys: i' = i + query_offset. None is
                M − N, attention's ``align="bottom_right"``; 0 is ``"top_left"``.

        Returns:
            (1, H, N, M) in the weight's dtype, contiguous, with a gradient to the weight.
        """
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            query_length = integer("RelativePositionBias", "query_length", query_length, 0)
            key_length = integer("RelativePositionBias", "key_length", key_length, 0)
        offset = key_length - query_length if query_offset is None else query_offset
        # N + M − 1 distances serve all pairs; one more in front lets N and M be 0.
        relative = torch.arange(
            -query_length - offset,
            key_length - offset,
            dtype=torch.int64,
            device=self.weight.device,
        )
        buckets = _bucket(relative, self.starts, self.bidirectional)
        values = self.weight[buckets].t().contiguous()  # (H, N + M)
        # Row N − i of the sliding windows is query i.
        windows = values.unfold(1, key_length, 1)[:, 1:]  # (H, N, M)
        return windows.flip(1).contiguous().unsqueeze(0)

    def extra_repr(self) -> str:
        buckets, heads = self.weight.shape
        return f"heads={heads}, buckets={buckets}, bidirectional={self.bidirectional}"
