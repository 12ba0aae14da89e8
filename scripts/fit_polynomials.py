"""Least-maximum polynomial fits (Remez's exchange) behind csrc/simd/math.h.

Prints each fit as C++ constants with the interval and the largest relative error of the function
that it yields, before rounding of the coefficients. Needs mpmath.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mpmath
from mpmath import erf, erfc, exp, fabs, log, mp, mpf, sqrt, tanh

mp.dps = 120
Real = Callable[[mpf], mpf]


@dataclass(frozen=True)
class Fit:
    name: str
    target: Real  # what the polynomial stands for
    weight: Real  # absolute error of the polynomial times this = relative error of the function
    low: mpf
    high: mpf
    degree: int
    single: bool


def remez(fit: Fit) -> tuple[list[mpf], mpf]:
    """Coefficients, lowest first, and the largest weighted error."""
    n = fit.degree + 2
    middle, radius = (fit.low + fit.high) / 2, (fit.high - fit.low) / 2
    nodes = [middle - radius * mpmath.cos(mpmath.pi * i / (n - 1)) for i in range(n)]
    grid = [middle - radius * mpmath.cos(mpmath.pi * i / (30 * n)) for i in range(30 * n + 1)]
    targets, weights = [fit.target(x) for x in grid], [fit.weight(x) for x in grid]
    for _ in range(12):
        system = mpmath.matrix(n, n)
        right = mpmath.matrix(n, 1)
        for i, x in enumerate(nodes):
            for j in range(n - 1):
                system[i, j] = fit.weight(x) * x**j
            system[i, n - 1] = mpf(-1) ** i
            right[i] = fit.weight(x) * fit.target(x)
        solution = mpmath.lu_solve(system, right)
        coefficients = [solution[j] for j in range(n - 1)]
        values = [mpmath.polyval(coefficients[::-1], x) for x in grid]
        errors = [w * (t - v) for t, v, w in zip(targets, values, weights, strict=True)]
        worst = max(fabs(e) for e in errors)
        if worst < fabs(solution[n - 1]) * mpf("1.02"):
            break
        nodes = alternating_extremes(grid, errors, n)
    return coefficients, worst


def alternating_extremes(grid: list[mpf], errors: list[mpf], n: int) -> list[mpf]:
    """The n points of largest error with alternating signs."""
    picks: list[int] = []
    for i, e in enumerate(errors):
        if picks and (e >= 0) == (errors[picks[-1]] >= 0):
            if fabs(e) > fabs(errors[picks[-1]]):
                picks[-1] = i
        else:
            picks.append(i)
    while len(picks) > n:
        picks.pop(0 if fabs(errors[picks[0]]) < fabs(errors[picks[-1]]) else -1)
    if len(picks) < n:
        raise ArithmeticError(f"only {len(picks)} of {n} alternations: raise mp.dps")
    return [grid[i] for i in picks]


def fits() -> list[Fit]:
    """All fits; each weight makes the error that of the whole function, relative to its size."""
    tiny = mpf(10) ** -40

    def log_tail(f: mpf) -> mpf:  # (log(1+f) − f)/f²
        f = f if fabs(f) > tiny else tiny
        return (log(1 + f) - f) / f**2

    def atanh_tail(z: mpf) -> mpf:  # (log((1+s)/(1−s))/s − 2)/z with z = s²
        s = sqrt(max(z, tiny))
        return (log((1 + s) / (1 - s)) / s - 2) / s**2

    def tanh_tail(z: mpf) -> mpf:  # (tanh(x)/x − 1)/z with z = x²
        x = sqrt(max(z, tiny))
        return (tanh(x) / x - 1) / x**2

    def erf_excess(z: mpf) -> mpf:  # erf(x)/x − 1
        x = sqrt(max(z, tiny))
        return erf(x) / x - 1

    def log_erfc(x: mpf) -> mpf:
        return log(erfc(x))

    def erfc_weight(x: mpf) -> mpf:
        return erfc(x) / erf(x)

    def exp_tail(r: mpf) -> mpf:  # (exp(r) − 1 − r)/r²
        r = r if fabs(r) > tiny else tiny
        return (exp(r) - 1 - r) / r**2

    def expm1_tail(r: mpf) -> mpf:  # (exp(r) − 1)/r
        r = r if fabs(r) > tiny else tiny
        return (exp(r) - 1) / r

    def exp2m1_tail(r: mpf) -> mpf:  # (2^r − 1)/r
        r = r if fabs(r) > tiny else tiny
        return (mpf(2) ** r - 1) / r

    def log_weight(f: mpf) -> mpf:
        return f * f / log(1 + f) if fabs(f) > tiny else tiny

    root = sqrt(mpf(2))
    half = mpf(1) / 2
    half_ln2 = log(root)
    steepest = (root - 1) / (root + 1)
    return [
        Fit("exp", exp_tail, lambda r: max(r * r, tiny) / exp(r), -half_ln2, half_ln2, 5, True),
        Fit("exp flushed", expm1_tail, lambda r: fabs(r) / exp(r), -half_ln2, half_ln2, 5, True),
        Fit("exp2 rough", exp2m1_tail, lambda r: fabs(r) / mpf(2) ** r, -half, half, 3, True),
        Fit("log", log_tail, log_weight, 1 / root - 1, root - 1, 8, True),
        Fit("log", atanh_tail, lambda z: z / 2, mpf(0), steepest**2, 6, False),
        Fit("tanh", tanh_tail, lambda z: max(z, tiny), mpf(0), mpf("0.55") ** 2, 4, True),
        Fit("tanh", tanh_tail, lambda z: max(z, tiny), mpf(0), mpf("0.55") ** 2, 10, False),
        Fit("erf near 0", erf_excess, lambda z: mpf(1), mpf(0), mpf("0.92") ** 2, 6, True),
        Fit("erf near 0", erf_excess, lambda z: mpf(1), mpf(0), mpf(1), 12, False),
        Fit("log erfc", log_erfc, erfc_weight, mpf("0.92"), mpf("3.93"), 7, True),
        Fit("log erfc", log_erfc, erfc_weight, mpf(1), mpf("5.93"), 19, False),
    ]


def main() -> None:
    for fit in fits():
        coefficients, worst = remez(fit)
        digits, suffix = (10, "f") if fit.single else (20, "")
        constants = [mp.nstr(c, digits, min_fixed=1, max_fixed=0) + suffix for c in coefficients]
        interval = f"[{mp.nstr(fit.low, 6)}, {mp.nstr(fit.high, 6)}]"
        print(f"{fit.name}, float{32 if fit.single else 64}, {interval}: error {mp.nstr(worst, 3)}")
        print("  {" + ", ".join(constants) + "}")


if __name__ == "__main__":
    main()
