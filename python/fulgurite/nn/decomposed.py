"""SAM's decomposed relative position bias, as extra width of query and key."""

import math

import torch
from torch import Tensor, nn


def _relative_rows(table: Tensor, queries: int, keys: int) -> Tensor:
    """Row of the table for every pair along one axis: (queries, keys, D), with gradient."""
    longest = max(queries, keys)
    rows = 2 * longest - 1
    if table.size(0) != rows:
        resized = nn.functional.interpolate(table.t().unsqueeze(0), size=rows, mode="linear")
        table = resized.squeeze(0).t()  # (rows, D)
    # Both axes are stretched to the longer one. In whole numbers: floor((y − y')·stretch).
    query = torch.arange(queries, dtype=torch.int64, device=table.device) * longest
    key = torch.arange(keys - 1, -1, -1, dtype=torch.int64, device=table.device) * longest
    return table[(query // queries)[:, None] + key // keys]


def decomposed_bias_inputs(
    query: Tensor,
    key: Tensor,
    table_h: Tensor,
    table_w: Tensor,
    query_size: tuple[int, int],
    key_size: tuple[int, int] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Query and key whose plain product is SAM's score, decomposed relative bias included.

    For the query in row y and column x, and the key in row y' and column x', ::

        scale · q·k + q·table_h[y − y' + kh − 1] + q·table_w[x − x' + kw − 1]
            = [scale·q ‖ rel_h ‖ rel_w] · [k ‖ onehot(y') ‖ onehot(x')]

    exactly: the one-hot columns pick one element of ``rel_h = q·table_h`` and of ``rel_w``, which
    are rounded to query's dtype, as in SAM. Nothing of size N×M is made, and the gradient reaches
    query, key and both tables. Pass the results to
    :func:`fulgurite.nn.functional.attention` **with** ``scale=1.0``; the value stays as it is. The
    columns not picked are multiplied by 0, so a NaN or Inf among them reaches the whole query.
    SAM, https://arxiv.org/abs/2304.02643, https://github.com/facebookresearch/segment-anything;
    the bias is MViTv2's, https://arxiv.org/abs/2112.01526.

    Args:
        query: (..., Hq, N, D), N = qh·qw positions row by row, not scaled.
        key: (..., Hkv, M, D) in query's dtype, M = kh·kw.
        table_h, table_w: (L, D), shared by the heads. L is 2·max(qh, kh) − 1 (the same of the
            widths); a table of another length is interpolated linearly, as SAM does. If query and
            key sizes differ, positions of the shorter axis are stretched to the longer one.
        query_size: (qh, qw).
        key_size: (kh, kw); None is query_size.
        scale: of q·k only, not of the bias; None is 1/√D.

    Returns:
        ``(query_plus, key_plus)``, (..., Hq, N, D + kh + kw) and (..., Hkv, M, D + kh + kw),
        contiguous, in query's dtype.

    Raises:
        ValueError: sizes that do not give N and M; a table that is not (L, D); a key of another
            width or dtype.

    >>> query, key = torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8)
    >>> table_h, table_w = torch.randn(5, 8), torch.randn(7, 8)
    >>> query_plus, key_plus = decomposed_bias_inputs(query, key, table_h, table_w, (3, 4))
    >>> query_plus.shape, key_plus.shape
    (torch.Size([1, 2, 12, 15]), torch.Size([1, 2, 12, 15]))
    """
    name = "decomposed_bias_inputs"
    rows, columns = query_size
    key_rows, key_columns = query_size if key_size is None else key_size
    if min(rows, columns, key_rows, key_columns) < 1:
        raise ValueError(
            f"{name}: expected positive sizes, "
            f"got ({rows}, {columns}) and ({key_rows}, {key_columns})"
        )
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{name}: expected scale finite, got {scale}")
    if query.dim() < 2 or query.size(-2) != rows * columns:
        raise ValueError(
            f"{name}: expected query of shape [..., {rows * columns}, D], got {list(query.shape)}"
        )
    dim = query.size(-1)
    if key.dim() < 2 or key.size(-2) != key_rows * key_columns or key.size(-1) != dim:
        raise ValueError(
            f"{name}: expected key of shape [..., {key_rows * key_columns}, {dim}], "
            f"got {list(key.shape)}"
        )
    if key.dtype != query.dtype:
        raise ValueError(f"{name}: expected key of {query.dtype}, got {key.dtype}")
    for table in (table_h, table_w):
        if table.dim() != 2 or table.size(0) < 1 or table.size(1) != dim:
            raise ValueError(
                f"{name}: expected tables of shape [L, {dim}], got {list(table.shape)}"
            )
    rows_h = _relative_rows(table_h, rows, key_rows).to(query.dtype)  # (qh, kh, D)
    rows_w = _relative_rows(table_w, columns, key_columns).to(query.dtype)  # (qw, kw, D)
    grid = query.unflatten(-2, [rows, columns])  # (..., qh, qw, D)
    bias_h = torch.einsum("...yxd,ykd->...yxk", grid, rows_h).flatten(-3, -2)  # (..., N, kh)
    bias_w = torch.einsum("...yxd,xkd->...yxk", grid, rows_w).flatten(-3, -2)  # (..., N, kw)
    factor = dim**-0.5 if scale is None else scale
    # Under autocast the products are 16-bit while the query still is not.
    query_plus = torch.cat([query * factor, bias_h.to(query.dtype), bias_w.to(query.dtype)], dim=-1)

    one_row = torch.eye(key_rows, dtype=key.dtype, device=key.device)
    one_column = torch.eye(key_columns, dtype=key.dtype, device=key.device)
    place = torch.cat(
        [one_row.repeat_interleave(key_columns, dim=0), one_column.repeat(key_rows, 1)], dim=-1
    )  # (M, kh + kw)
    key_plus = torch.cat([key, place.expand(key.shape[:-1] + place.shape[-1:])], dim=-1)
    return query_plus, key_plus
