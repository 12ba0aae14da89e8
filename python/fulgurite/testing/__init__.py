"""References, sample calls and tolerances: what the tests use, and what users may test with.

``OPERATORS`` has an entry per operator; ``evaluate`` runs a call with gradients; ``tolerances``
says when a result is accurate.
"""

from __future__ import annotations

from fulgurite.testing import samples as _samples  # fills OPERATORS
from fulgurite.testing.evaluate import evaluate, to_float64
from fulgurite.testing.registry import OPERATORS, ErrorSample, Operator, Sample
from fulgurite.testing.tolerances import ErrorStatistics, assert_accurate, unit_roundoff

__all__ = [
    "OPERATORS",
    "ErrorSample",
    "ErrorStatistics",
    "Operator",
    "Sample",
    "assert_accurate",
    "evaluate",
    "to_float64",
    "unit_roundoff",
]

del _samples
