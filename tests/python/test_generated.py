"""The checks that every operator passes, generated from ``fulgurite.testing.OPERATORS``.

Framework checks do not depend on the instruction set: they run once, on the first two samples of
each operator. Numeric checks run per sample, dtype and instruction set.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

from common_checks import (
    DEVICE,
    DTYPES,
    assert_gaps_untouched,
    assert_same_bits,
    expected,
    samples_of,
    scattered,
    threads,
)
from fulgurite.testing import (
    OPERATORS,
    ErrorSample,
    ErrorStatistics,
    Operator,
    Sample,
    evaluate,
)
from fulgurite.testing.backend import always_spread, backends, current, using
from fulgurite.testing.registry import ALL_DTYPES, argument_name, select, substitute
from fulgurite.testing.source import call_module, tensors_only
from fulgurite.testing.tolerances import MIN_SEEDS


def framework_dtype(operator: Operator) -> torch.dtype:
    return torch.float32 if torch.float32 in operator.dtypes else operator.dtypes[0]


def framework_cases(accept: Callable[[Operator], bool] = lambda _: True) -> Any:
    """(operator, sample) of the first two samples of every operator that is accepted."""
    return pytest.mark.parametrize(
        ("operator", "sample"),
        [
            pytest.param(operator, sample, id=f"{name}-{sample.name}")
            for name, operator in OPERATORS.items()
            if accept(operator)
            for sample in list(samples_of(name, framework_dtype(operator), 0).values())[:2]
        ],
    )


def numeric_cases(
    accept: Callable[[Operator], bool] = lambda _: True,
    dtypes: tuple[torch.dtype, ...] = ALL_DTYPES,
) -> Any:
    """(operator, dtype, sample name) of every sample."""
    return pytest.mark.parametrize(
        ("operator", "dtype", "sample"),
        [
            pytest.param(operator, dtype, sample, id=f"{name}-{sample}-{str(dtype)[6:]}")
            for name, operator in OPERATORS.items()
            if accept(operator)
            for dtype in operator.dtypes
            if dtype in dtypes
            for sample in samples_of(name, dtype, 0)
        ],
    )


def error_cases() -> Any:
    return pytest.mark.parametrize(
        ("operator", "wrong"),
        [
            pytest.param(operator, wrong, id=f"{name}-{wrong.name}")
            for name, operator in OPERATORS.items()
            for wrong in operator.errors(DEVICE)
        ],
    )


# ---------------------------------------------------------------- framework checks


@framework_cases()
def test_opcheck(operator: Operator, sample: Sample) -> None:
    leaves = select(operator, sample, operator.differentiable, floating=True)
    leaves = {label: tensor.detach().requires_grad_() for label, tensor in leaves.items()}
    call = substitute(operator, sample, leaves)
    torch.library.opcheck(operator.op, call.args, call.kwargs)


@framework_cases()
def test_compile(operator: Operator, sample: Sample) -> None:
    torch._dynamo.reset()
    module = call_module(operator, sample)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    call = tensors_only(operator, sample)
    assert_same_bits(evaluate(compiled, operator, call), evaluate(operator.op, operator, sample))


@framework_cases()
def test_export(operator: Operator, sample: Sample) -> None:
    call = tensors_only(operator, sample)
    program = torch.export.export(call_module(operator, sample), (), call.kwargs)
    targets = [str(node.target) for node in program.graph.nodes]
    assert f"fulgurite.{operator.name}.default" in targets
    with torch.no_grad():
        actual = evaluate(program.module(), operator, call, differentiable=())
    assert_same_bits(actual, evaluate(operator.op, operator, sample, differentiable=()))


@framework_cases()
def test_script_saved_and_loaded(operator: Operator, sample: Sample) -> None:
    archive = io.BytesIO()
    torch.jit.save(torch.jit.script(call_module(operator, sample)), archive)
    archive.seek(0)
    loaded = torch.jit.load(archive)
    actual = evaluate(loaded, operator, tensors_only(operator, sample))
    assert_same_bits(actual, evaluate(operator.op, operator, sample))


@numeric_cases()
def test_meta_equals_real(operator: Operator, dtype: torch.dtype, sample: str) -> None:
    call = samples_of(operator.name, dtype, 0)[sample]
    real = evaluate(operator.op, operator, call)
    meta = evaluate(operator.op, operator, call.map(lambda tensor: tensor.to("meta")))
    assert meta.keys() == real.keys()
    for label, tensor in real.items():
        found = meta[label]
        assert found.is_meta, label
        layout = (found.dtype, found.shape, found.stride())
        assert layout == (tensor.dtype, tensor.shape, tensor.stride()), label


@framework_cases()
def test_autocast(operator: Operator, sample: Sample) -> None:
    def autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            return operator.op(*args, **kwargs)

    def check(given: Sample, equivalent: Sample) -> None:
        actual = evaluate(autocast, operator, given, cotangent_dtype=torch.bfloat16)
        want = evaluate(operator.op, operator, equivalent, cotangent_dtype=torch.bfloat16)
        leaves = select(operator, given, operator.differentiable, floating=True)
        want |= {f"grad of {k}": want[f"grad of {k}"].to(leaf.dtype) for k, leaf in leaves.items()}
        assert_same_bits(actual, want)

    if operator.autocast == "lower":
        keys = operator.autocast_args or operator.differentiable
        cast = select(operator, sample, keys, floating=True)
        cast = {label: tensor.bfloat16() for label, tensor in cast.items()}
        check(sample, substitute(operator, sample, cast))
    elif operator.autocast == "float32":
        low = samples_of(operator.name, torch.bfloat16, 0)[sample.name]
        check(low, low.map(lambda t: t.float() if t.dtype == torch.bfloat16 else t))
    else:
        check(sample, sample)
    if torch.float64 in operator.dtypes and torch.float64 in DTYPES:  # float64 is never cast
        wide = samples_of(operator.name, torch.float64, 0)[sample.name]
        check(wide, wide)


@error_cases()
def test_error(operator: Operator, wrong: ErrorSample) -> None:
    if wrong.of_contents and current().kernels == "cuda":
        pytest.skip("the card's memory is not read")
    call = Sample(wrong.name, wrong.args, wrong.kwargs)
    before = [tensor.clone() for tensor in call.tensors()]
    with pytest.raises(wrong.error, match=wrong.match) as raised:
        operator.op(*wrong.args, **wrong.kwargs)
    assert raised.type is wrong.error
    assert f"fulgurite::{operator.name}: " in str(raised.value)
    after = call.tensors()
    assert_same_bits(dict(enumerate(after)), dict(enumerate(before)), "after the error")


@framework_cases()
def test_writes_are_seen_by_autograd(operator: Operator, sample: Sample) -> None:
    """What may be written has its version counter raised; everything else is left alone."""
    call = sample.map(lambda tensor: tensor.clone())
    versions = {id(tensor): tensor._version for tensor in call.tensors()}
    written = select(operator, call, operator.mutates)
    operator.op(*call.args, **call.kwargs)
    for label, tensor in written.items():
        assert tensor.numel() == 0 or tensor._version > versions[id(tensor)], label
    mutated = {id(tensor) for tensor in written.values()}
    for before, after in zip(sample.tensors(), call.tensors(), strict=True):
        if id(after) not in mutated:
            assert after._version == versions[id(after)]
            assert_same_bits({"argument": after}, {"argument": before})


# ---------------------------------------------------------------- numeric checks


def assert_accurate_over_seeds(
    operator: Operator,
    dtype: torch.dtype,
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> list[dict[str, torch.Tensor]]:
    """Hold a sample, its tensors changed, to the accuracy rule; the results for each seed."""
    statistics = ErrorStatistics(dtype)
    results = []
    for seed in range(1 if dtype == torch.float64 else MIN_SEEDS):
        call = samples_of(operator.name, dtype, seed)[name].map(change)
        actual = evaluate(operator.op, operator, call, cotangent_dtype=dtype)
        statistics.add(actual, *expected(operator.name, dtype, seed, name))
        results.append(actual)
    statistics.assert_accurate()
    return results


@numeric_cases()
def test_accuracy(operator: Operator, dtype: torch.dtype, sample: str, isa: str) -> None:
    assert_accurate_over_seeds(operator, dtype, sample)


@numeric_cases()
def test_strided(operator: Operator, dtype: torch.dtype, sample: str, isa: str) -> None:
    for results in assert_accurate_over_seeds(operator, dtype, sample, scattered):
        for label, tensor in results.items():
            if operator.mutates:
                assert_gaps_untouched(tensor)
            else:
                assert tensor.is_contiguous(), label


@numeric_cases()
def test_same_bits_for_any_threads(
    operator: Operator, dtype: torch.dtype, sample: str, isa: str
) -> None:
    """Every call is spread, also those too small for it to pay."""
    call = samples_of(operator.name, dtype, 0)[sample]
    with threads(1):
        one = evaluate(operator.op, operator, call)
    for count in (2, 3, 8):
        with threads(count), always_spread():
            assert_same_bits(evaluate(operator.op, operator, call), one, f"with {count} threads")


@numeric_cases(lambda operator: operator.exact)
def test_same_bits_for_any_instruction_set(
    operator: Operator, dtype: torch.dtype, sample: str, isa: str
) -> None:
    call = samples_of(operator.name, dtype, 0)[sample]
    actual = evaluate(operator.op, operator, call)
    with using(backends()[0].set):
        assert_same_bits(actual, evaluate(operator.op, operator, call), f"on {isa}")


def differentiable_function(
    operator: Operator, sample: Sample
) -> tuple[Callable[..., list[torch.Tensor]], list[torch.Tensor]]:
    """The call as a function of its differentiable arguments alone, and those arguments."""
    leaves = select(operator, sample, operator.differentiable, floating=True)

    def function(*tensors: torch.Tensor) -> list[torch.Tensor]:
        given = substitute(operator, sample, dict(zip(leaves, tensors, strict=True)))
        outputs = operator.op(*given.args, **given.kwargs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        # An infinite output, the lse of an empty row, has no finite differences.
        return [o.masked_fill(~torch.isfinite(o), 0.0) for o in outputs if o.requires_grad]

    return function, [tensor.clone().contiguous().requires_grad_() for tensor in leaves.values()]


@numeric_cases(
    lambda operator: bool(operator.differentiable) and not operator.constants,
    dtypes=(torch.float64,),
)
def test_gradcheck(operator: Operator, dtype: torch.dtype, sample: str) -> None:
    call = samples_of(operator.name, dtype, 0)[sample]
    function, inputs = differentiable_function(operator, call)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@numeric_cases(lambda operator: bool(operator.differentiable), dtypes=(torch.float64,))
def test_double_backward_is_right_or_refused(
    operator: Operator, dtype: torch.dtype, sample: str
) -> None:
    call = samples_of(operator.name, dtype, 0)[sample]
    function, inputs = differentiable_function(operator, call)
    try:
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    except RuntimeError as error:
        if isinstance(error, GradcheckError) or "fulgurite::" not in str(error):
            raise


@numeric_cases(lambda operator: bool(operator.differentiable))
def test_gradients_one_at_a_time(
    operator: Operator, dtype: torch.dtype, sample: str, isa: str
) -> None:
    """A gradient has the same bits whether or not others are asked for with it."""
    call = samples_of(operator.name, dtype, 0)[sample]
    together = evaluate(operator.op, operator, call)
    for key in operator.differentiable:
        if not select(operator, call, (key,), floating=True):
            continue
        alone = evaluate(operator.op, operator, call, differentiable=(key,))
        assert_same_bits(
            alone,
            {label: together[label] for label in alone},
            f"alone: {argument_name(operator, key)}",
        )
