"""Attention's inputs without a batch, or with two batch dimensions, as the operator's four.

Shapes are checked as they are given: flattened, batches that do not belong together may fit.
"""

from typing import Any, Optional

from torch import Tensor

from fulgurite.nn.functional._inputs import check_dense, is_known, may_be


def shape_of(lead: list[int], names: list[str]) -> str:
    """A shape, known at its front only: "[2, 3, Hkv, M, 8]"."""
    return "[" + ", ".join([str(size) for size in lead] + names) + "]"


def alike(sizes: list[int], others: list[int]) -> bool:
    """Whether shapes are equal, as far as they are known."""
    fits = len(sizes) == len(others)
    for i in range(min(len(sizes), len(others))):
        fits = fits and may_be(sizes[i] == others[i])
    return fits


def check_are_tensors(
    query: Any, key: Any, value: Any, bias: Any, mask: Any, alibi_slopes: Any
) -> None:
    """Raise for the first that is none, such as a number in the place of another argument."""
    for name, x, may_miss in (
        ("query", query, False),
        ("key", key, False),
        ("value", value, False),
        ("bias", bias, True),
        ("mask", mask, True),
        ("alibi_slopes", alibi_slopes, True),
    ):
        if not isinstance(x, Tensor) and not (may_miss and x is None):
            raise TypeError(f"fulgurite::attention: expected a tensor for {name}, got {x!r}")


def check_batches(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise unless key and value have query's batch dimensions. Of four, the operator checks."""
    dims = query.dim()
    if dims == 4:
        return
    check_dense("fulgurite::attention", "query", query)
    check_dense("fulgurite::attention", "key", key)
    check_dense("fulgurite::attention", "value", value)
    if dims < 3 or dims > 5:
        raise RuntimeError(
            f"fulgurite::attention: expected query of 3, 4 or 5 dimensions, got {list(query.shape)}"
        )
    lead = list(query.shape[:-3])
    if (
        key.dim() != dims
        or not alike(list(key.shape[:-3]), lead)
        or not may_be(key.size(-1) == query.size(-1))
    ):
        expected = shape_of(lead, ["Hkv", "M", str(query.size(-1))])
        raise RuntimeError(
            f"fulgurite::attention: expected key of shape {expected}, got {list(key.shape)}"
        )
    if value.dim() != dims or not alike(list(value.shape[:-1]), list(key.shape[:-1])):
        expected = shape_of(list(key.shape[:-1]), ["Dv"])
        raise RuntimeError(
            f"fulgurite::attention: expected value of shape {expected}, got {list(value.shape)}"
        )


def four_dims(x: Tensor) -> Tensor:
    """(H,N,D) becomes (1,H,N,D), (B1,B2,H,N,D) becomes (B1·B2,H,N,D)."""
    if x.dim() == 3:
        return x.unsqueeze(0)
    if x.dim() == 5:
        return x.flatten(0, 1)
    return x


def repeats(size: int, batch: int) -> bool:
    """The operator's rule for the batch of a bias or mask: it divides the queries' batch."""
    if is_known(size == 0):
        return False
    return may_be(size == 0) or may_be(batch % size == 0)


def four_dims_of_scores(
    name: str, x: Optional[Tensor], query: Tensor, key: Tensor
) -> Optional[Tensor]:
    """The same for a tensor that broadcasts to the scores (..., Hq, N, M)."""
    if x is None or (query.dim() == 4 and x.dim() <= 4):
        return x
    check_dense("fulgurite::attention", name, x)
    scores = list(query.shape[:-1])
    scores.append(key.size(-2))
    fits = x.dim() <= max(len(scores), 4)
    for dim in range(1, min(x.dim(), len(scores)) + 1):
        if dim == 4 and x.dim() == 4 and len(scores) == 5:
            fits = fits and repeats(x.size(0), scores[0] * scores[1])
        else:
            fits = fits and (may_be(x.size(-dim) == 1) or may_be(x.size(-dim) == scores[-dim]))
    if x.dim() == 4 and len(scores) == 3:
        fits = fits and may_be(x.size(0) == 1)
    if not fits:
        raise RuntimeError(
            f"fulgurite::attention: expected {name} broadcastable to {scores}, got {list(x.shape)}"
        )
    if x.dim() != 5:
        return x
    if is_known(x.size(0) == 1):  # repeats over the first batch dimension: the operator's rule
        return x.squeeze(0)
    return x.expand(query.size(0), query.size(1), -1, -1, -1).flatten(0, 1)


def four_dims_of_slopes(x: Optional[Tensor], query: Tensor) -> Optional[Tensor]:
    """The same for slopes of each head, or of each batch and head."""
    if x is None or query.dim() == 4 or x.dim() == 1:
        return x
    check_dense("fulgurite::attention", "alibi_slopes", x)
    if not alike(list(x.shape), list(query.shape[:-2])):
        raise RuntimeError(
            f"fulgurite::attention: expected alibi_slopes of shape [{query.size(-3)}] or "
            f"{list(query.shape[:-2])}, got {list(x.shape)}"
        )
    return x.flatten(0, 1)


def dims_as_given(x: Tensor, query: Tensor) -> Tensor:
    """A result of the operator with query's batch dimensions."""
    if query.dim() == 3:
        return x.squeeze(0)
    if query.dim() == 5:
        return x.unflatten(0, [query.size(0), query.size(1)])  # type: ignore[no-any-return]
    return x
