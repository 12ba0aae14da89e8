"""Least-maximum polynomial fits (Remez's exchange) behind csrc/simd/math.h.

Prints each fit as C++ constants with the interval and the largest relative error of the function that it yields, before
rounding of the coefficients. Needs mpmath: ``python scripts/fit_polynomials.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpmath import cos, erf, erfc, exp, fabs, log, lu_solve, matrix, mp, mpf, pi, polyval, sqrt, tanh

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
    nodes = [middle - radius * cos(pi * i / (n - 1)) for i in range(n)]
    grid = [middle - radius * cos(pi * i / (30 * n)) for i in range(30 * n + 1)]
    targets, weights = [fit.target(x) for x in grid], [fit.weight(x) for x in grid]
    for _ in range(12):
        system = matrix(n, n)
        right = matrix(n, 1)
        for i, x in enumerate(nodes):
            for j in range(n - 1):
                system[i, j] = fit.weight(x) * x**j
            system[i, n - 1] = mpf(-1) ** i
            right[i] = fit.weight(x) * fit.target(x)
        solution = lu_solve(system, right)
        coefficients = [solution[j] for j in range(n - 1)]
        errors = [w * (t - polyval(coefficients[::-1], x)) for x, t, w in zip(grid, targets, weights, strict=True)]
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
        raise ArithmeticError(f"only {len(picks)} of {n} alternations: the degree is too high for the precision")
    return [grid[i] for i in picks]


def fits() -> list[Fit]:
    """erf's upper range and log are weighted by their own size; every other weight is the series' leading power."""
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

    def exp_tail(r: mpf) -> mpf:  # (exp(r) − 1 − r)/r²
        r = r if fabs(r) > tiny else tiny
        return (exp(r) - 1 - r) / r**2

    root = sqrt(mpf(2))
    half_ln2 = log(mpf(2)) / 2
    out = [Fit("exp float", exp_tail, lambda r: max(r * r, tiny) / exp(r), -half_ln2, half_ln2, 5, True)]
    for single in (True, False):
        suffix = "float" if single else "double"
        if single:
            out.append(Fit("log float", log_tail, lambda f: f * f / log(1 + f) if fabs(f) > tiny else tiny, 1 / root - 1, root - 1, 8, True))
        else:
            out.append(Fit("log double", atanh_tail, lambda z: z / 2, mpf(0), ((root - 1) / (root + 1)) ** 2, 6, False))
        switch = mpf("0.55")
        out.append(Fit(f"tanh {suffix}", tanh_tail, lambda z: max(z, tiny), mpf(0), switch**2, 4 if single else 10, single))
        switch = mpf("0.92") if single else mpf(1)
        top = mpf("3.93") if single else mpf("5.93")
        out.append(Fit(f"erf {suffix}, low", erf_excess, lambda z: mpf(1), mpf(0), switch**2, 6 if single else 12, single))
        out.append(Fit(f"erf {suffix}, high", lambda x: log(erfc(x)), lambda x: erfc(x) / erf(x), switch, top, 7 if single else 19, single))
    return out


def main() -> None:
    for fit in fits():
        coefficients, worst = remez(fit)
        digits, suffix = (10, "f") if fit.single else (20, "")
        print(f"{fit.name}: [{mp.nstr(fit.low, 6)}, {mp.nstr(fit.high, 6)}], error {mp.nstr(worst, 3)} = 2^{mp.nstr(log(worst) / log(2), 4)}")
        print("  {" + ", ".join(mp.nstr(c, digits, min_fixed=1, max_fixed=0) + suffix for c in coefficients) + "}")


if __name__ == "__main__":
    main()
