"""Sample calls of the optim family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.references import optim as reference
from fulgurite.testing.registry import ErrorSample, Operator, Sample

HYPER = [[1e-2, 0.9, 0.999, 1e-8, 0.1, 0.99], [3e-3, 0.4, 0.95, 1e-6, 0.0, 0.9]]


class Lists:
    """The arguments of a call of adamw_ in the middle of a training run."""

    def __init__(
        self,
        shapes: list[tuple[int, ...]],
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        *,
        grad_dtype: torch.dtype | None = None,
        moment_dtype: torch.dtype | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def normal(shape: tuple[int, ...], to: torch.dtype) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, to)

        moment = moment_dtype or wide
        self.device = device
        self.params = [normal(shape, dtype) for shape in shapes]
        self.grads = [normal(shape, grad_dtype or dtype) for shape in shapes]
        self.exp_avgs = [normal(shape, moment) * 0.1 for shape in shapes]
        self.exp_avg_sqs = [normal(shape, moment).square() * 0.1 for shape in shapes]
        self.max_exp_avg_sqs: list[Tensor] = []
        self.masters: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.emas: list[Tensor] = []
        self.steps = [torch.tensor(float(3 + 40 * i), device=device) for i in range(len(shapes))]
        self.hyper = torch.tensor(HYPER, dtype=torch.float64, device=device)
        self.groups = [i % 2 for i in range(len(shapes))]

    def args(self, **replaced: Any) -> tuple[Any, ...]:
        """The positional arguments in the schema's order."""
        names = (
            "params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "masters", "copies",
            "emas", "steps", "hyper", "groups",
        )  # fmt: skip
        return tuple(replaced.get(name, getattr(self, name)) for name in names)

    def wrong(
        self,
        name: str,
        error: type[Exception],
        match: str,
        kwargs: dict[str, Any] | None = None,
        **args: Any,
    ) -> ErrorSample:
        """The call with some arguments replaced, which raises."""
        return ErrorSample(name, self.args(**args), kwargs or {}, error, match)


def scalar(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device)


def adamw_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    low = dtype in (torch.bfloat16, torch.float16)

    def lists(*shapes: tuple[int, ...], **options: Any) -> Lists:
        return Lists(list(shapes), dtype, device, seed, **options)

    plain = lists((5, 7), (33,), (2, 3, 4))
    yield Sample("groups", plain.args(), {"grad_multiplier": scalar(0.25, device)})

    rich = lists((17,), (3, 9))
    rich.max_exp_avg_sqs = [torch.full_like(v, 0.05) for v in rich.exp_avg_sqs]
    if dtype != torch.float64:
        rich.copies = [rich.params[0].float() * 0, torch.empty(0, device=device)]
    rich.emas = [torch.empty(0, device=device, dtype=rich.exp_avgs[0].dtype), rich.exp_avgs[1] * 0]
    if low:
        rich.masters = [p.float() for p in rich.params]
    yield Sample(
        "amsgrad_masters_copies_emas",
        rich.args(),
        {"amsgrad": True, "found_inf": scalar(0.0, device)},
    )

    yield Sample("l2_maximize", lists((8, 8), (19,)).args(), {"decoupled": False, "maximize": True})
    if dtype != torch.float64:
        mixed = lists((21,), (4, 5), grad_dtype=torch.float32 if low else torch.bfloat16)
        yield Sample("other_gradient_dtype", mixed.args(), {"zero_grads": True})
    overflow = lists((6,))
    yield Sample(
        "overflow_changes_nothing",
        overflow.args(),
        {"found_inf": scalar(2.0, device), "zero_grads": True},
    )
    strided = lists((12, 10), (6, 4))
    strided.grads[0] = strided.grads[0].T.contiguous().T
    strided.exp_avgs[1] = strided.exp_avgs[1].T.contiguous().T
    yield Sample("strided", strided.args(), {})
    yield Sample("without_elements", lists((0, 3), (2,)).args(), {})
    yield Sample("without_tensors", lists().args(), {})
    rounded = lists((5, 7), (33,), (2, 3, 4))
    if low:
        rounded.masters = [torch.empty(0, device=device), rounded.params[1].float()]
        rounded.masters.append(torch.empty(0, device=device))
    yield Sample("stochastic", rounded.args(), rounding(device, keys=[7, 0, 2**32 - 1]))


def rounding(device: torch.device, **options: Any) -> dict[str, Any]:
    return {"seed": torch.tensor([2**40 + 77, 12], device=device), **options}


def adamw_errors(device: torch.device) -> Iterator[ErrorSample]:
    def make() -> Lists:
        return Lists([(3, 4), (5,)], torch.float32, device, 0)

    lists = make()

    wrong = lists.wrong

    yield wrong(
        "param_dtype", TypeError, r"params\[1\]", params=[lists.params[0], torch.ones(5).int()]
    )
    yield wrong(
        "grad_dtype", TypeError, r"grads\[0\]", grads=[lists.grads[0].double(), lists.grads[1]]
    )
    yield wrong(
        "moment_dtype",
        TypeError,
        r"exp_avgs\[1\]",
        exp_avgs=[lists.exp_avgs[0], torch.ones(5).half()],
    )
    yield wrong(
        "master_dtype",
        TypeError,
        r"masters\[0\]",
        masters=[torch.zeros(3, 4).short(), torch.zeros(5)],
    )
    yield wrong("step_dtype", TypeError, r"steps\[0\]", steps=[torch.tensor(1), lists.steps[1]])
    yield wrong("hyper_dtype", TypeError, "hyper", hyper=lists.hyper.float())
    yield wrong("found_inf_dtype", TypeError, "found_inf", {"found_inf": torch.tensor(0)})
    yield wrong(  # the type is checked before the shape
        "type_before_shape", TypeError, "hyper", hyper=lists.hyper.float(), grads=lists.grads[:1]
    )
    yield wrong(
        "grads_length", RuntimeError, "expected grads of length 2, got 1", grads=lists.grads[:1]
    )
    yield wrong("groups_length", RuntimeError, "groups", groups=[0])
    yield wrong(
        "masters_length", RuntimeError, "masters of length 2 or 0", masters=[torch.zeros(3, 4)]
    )
    yield wrong("amsgrad_without_state", RuntimeError, "max_exp_avg_sqs", {"amsgrad": True})
    yield wrong(
        "grad_shape",
        RuntimeError,
        r"expected grads\[1\] of params\[1\]'s shape \[5\], got \[4\]",
        grads=[lists.grads[0], torch.ones(4)],
    )
    yield wrong(
        "hyper_shape", RuntimeError, r"hyper of shape \[groups, 6\]", hyper=lists.hyper[:, :5]
    )
    yield wrong("step_shape", RuntimeError, r"steps\[0\]", steps=[torch.ones(2), lists.steps[1]])
    expanded = torch.ones(1, 4).expand(3, 4)
    yield wrong(
        "overlapping_param", RuntimeError, r"params\[0\]", params=[expanded, lists.params[1]]
    )
    yield wrong(
        "overlapping_moment", RuntimeError, r"exp_avgs\[0\]", exp_avgs=[expanded, lists.exp_avgs[1]]
    )
    twice = [lists.params[1], lists.params[1]]
    yield wrong(
        "param_twice",
        RuntimeError,
        "twice",
        params=twice,
        grads=twice,
        exp_avgs=twice,
        exp_avg_sqs=twice,
    )
    ones = torch.ones(2, 6, dtype=torch.float64)
    beta = wrong("beta_of_1", RuntimeError, "beta1", hyper=ones)
    steps = [torch.tensor(-1.0), lists.steps[1]]
    step = wrong("negative_step", RuntimeError, r"steps\[0\]", steps=steps)
    yield replace(beta, of_contents=True)
    yield replace(step, of_contents=True)
    yield wrong("group_range", ValueError, r"groups\[1\]", groups=[0, 2])
    yield wrong(  # the value is checked before the support
        "keys_without_seed", ValueError, "seed", {"keys": [0, 1]}
    )
    yield wrong("seed_dtype", TypeError, "seed", {"seed": torch.zeros(2)})
    yield wrong("seed_shape", RuntimeError, "seed", {"seed": torch.zeros(3, dtype=torch.int64)})
    seed = torch.zeros(2, dtype=torch.int64)
    yield wrong("keys_length", RuntimeError, "keys", {"seed": seed, "keys": [0]})
    yield wrong("keys_range", ValueError, r"keys\[1\]", {"seed": seed, "keys": [0, -1]})


class CodeLists(Lists):
    """The arguments of a call of adamw_8bit_: any codes are a state."""

    def __init__(
        self,
        shapes: list[tuple[int, ...]],
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        **options: Any,
    ) -> None:
        super().__init__(shapes, dtype, device, seed, **options)
        generator = torch.Generator().manual_seed(seed + 1)

        def codes(shape: tuple[int, ...]) -> Tensor:
            return torch.randint(256, shape, generator=generator).to(device, torch.uint8)

        def scales(shape: tuple[int, ...]) -> Tensor:
            blocks = -(-torch.Size(shape).numel() // 256)
            return (torch.rand(blocks, generator=generator) + 0.1).to(device)

        self.exp_avg_codes = [codes(shape) for shape in shapes]
        self.exp_avg_scales = [scales(shape) for shape in shapes]
        self.exp_avg_sq_codes = [codes(shape) for shape in shapes]
        self.exp_avg_sq_scales = [scales(shape) for shape in shapes]

    def args(self, **replaced: Any) -> tuple[Any, ...]:
        """The positional arguments in the schema's order."""
        names = (
            "params", "grads", "exp_avg_codes", "exp_avg_scales", "exp_avg_sq_codes",
            "exp_avg_sq_scales", "masters", "steps", "hyper", "groups",
        )  # fmt: skip
        return tuple(replaced.get(name, getattr(self, name)) for name in names)


def adamw_8bit_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    low = dtype in (torch.bfloat16, torch.float16)

    def lists(*shapes: tuple[int, ...], **options: Any) -> CodeLists:
        return CodeLists(list(shapes), dtype, device, seed, **options)

    yield Sample(
        "groups", lists((5, 7), (33,), (2, 3, 4)).args(), {"grad_multiplier": scalar(0.25, device)}
    )
    masters = lists((17,), (3, 9))
    if low:
        masters.masters = [masters.params[0].float(), torch.empty(0, device=device)]
    yield Sample("masters", masters.args(), {"found_inf": scalar(0.0, device)})
    yield Sample("blocks", lists((700,), (256,), (257,)).args(), {"maximize": True})
    yield Sample("l2", lists((8, 8), (19,)).args(), {"decoupled": False})
    zero = lists((300,))
    zero.exp_avg_codes[0][256:] = 127
    zero.exp_avg_sq_codes[0][256:] = 0
    zero.grads[0][256:] = 0.0
    yield Sample("zero_blocks", zero.args(), {})
    overflow = lists((6,))
    yield Sample("overflow_changes_nothing", overflow.args(), {"found_inf": scalar(2.0, device)})
    yield Sample("without_elements", lists((0, 3), (2,)).args(), {})
    yield Sample("without_tensors", lists().args(), {})
    yield Sample("stochastic", lists((5, 7), (30,)).args(), rounding(device))


def adamw_8bit_errors(device: torch.device) -> Iterator[ErrorSample]:
    lists = CodeLists([(3, 4), (300,)], torch.float32, device, 0)

    wrong = lists.wrong

    def second(name: str, tensor: Tensor) -> dict[str, Any]:
        return {name: [getattr(lists, name)[0], tensor]}

    ones = torch.ones(300)
    yield wrong("param_dtype", TypeError, r"params\[1\]", **second("params", ones.int()))
    yield wrong("grad_dtype", TypeError, r"grads\[1\]", **second("grads", ones.double()))
    for name in ("exp_avg_codes", "exp_avg_sq_codes"):
        yield wrong(f"{name}_dtype", TypeError, name, **second(name, ones.char()))
        yield wrong(f"{name}_shape", RuntimeError, name, **second(name, ones.byte()[:299]))
        none: dict[str, Any] = {name: []}
        yield wrong(f"{name}_length", RuntimeError, name, **none)
        expanded = torch.ones(1, dtype=torch.uint8).expand(300)
        yield wrong(f"{name}_overlaps", RuntimeError, name, **second(name, expanded))
    for name in ("exp_avg_scales", "exp_avg_sq_scales"):
        yield wrong(f"{name}_dtype", TypeError, name, **second(name, ones.double()[:2]))
        yield wrong(
            f"{name}_shape", RuntimeError, name + r"\[1\] of shape \[2\]", **second(name, ones[:1])
        )
        yield wrong(f"{name}_dim", RuntimeError, name, **second(name, ones[:2, None]))
    yield wrong("master_dtype", TypeError, "masters", masters=[torch.zeros(3, 4).short(), ones])
    yield wrong("step_dtype", TypeError, "steps", steps=[torch.tensor(1), lists.steps[1]])
    yield wrong("hyper_shape", RuntimeError, "hyper", hyper=lists.hyper[:, :5])
    names = (
        "params", "grads", "exp_avg_codes", "exp_avg_scales", "exp_avg_sq_codes",
        "exp_avg_sq_scales",
    )  # fmt: skip
    twice: dict[str, Any] = {name: [getattr(lists, name)[1]] * 2 for name in names}
    yield wrong("param_twice", RuntimeError, "twice", **twice)
    hyper = torch.ones(2, 6, dtype=torch.float64)
    yield replace(wrong("beta_of_1", RuntimeError, "beta1", hyper=hyper), of_contents=True)
    yield wrong("group_range", ValueError, r"groups\[1\]", groups=[0, 2])
    yield wrong("keys_without_seed", ValueError, "seed", {"keys": [0, 1]})


def split_master_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (7, 43), generator=generator).int().view(torch.float32)
    bits = torch.where(bits.isnan(), 1.0, bits).to(device)
    yield Sample("any_bits", (bits,), {})
    special = [
        0.0,
        -0.0,
        1.0,
        1.00390625,
        float("inf"),
        -float("inf"),
        3.4028234663852886e38,
        1e-45,
    ]
    yield Sample("special", (torch.tensor(special, device=device),), {})
    yield Sample("strided", (bits.T[::3],), {})
    yield Sample("no_elements", (bits[:0],), {})


def split_master_errors(device: torch.device) -> Iterator[ErrorSample]:
    ones = torch.ones(3, device=device)
    yield ErrorSample("dtype", (ones.double(),), {}, TypeError, "master")


def join_master_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    for sample in split_master_samples(dtype, device, seed):
        high, low = reference.split_master(sample.args[0].cpu())
        high, low = high.to(device), low.to(device)
        if sample.name == "strided":
            high, low = high.T.contiguous().T, low[:, :]
        yield Sample(sample.name, (high, low), {})


def join_master_errors(device: torch.device) -> Iterator[ErrorSample]:
    high, low = torch.ones(3, device=device).bfloat16(), torch.ones(3, device=device).short()
    yield ErrorSample("high_dtype", (high.half(), low), {}, TypeError, "high")
    yield ErrorSample("low_dtype", (high, low.int()), {}, TypeError, "low")
    yield ErrorSample("shape", (high, low[:2]), {}, RuntimeError, r"low of high's shape \[3\]")


OPERATORS = (
    Operator(
        name="adamw_",
        samples=adamw_samples,
        errors=adamw_errors,
        reference=reference.adamw_,
        naive=reference.adamw_rounded_,
        mutates=tuple(range(9)),
        exact=True,
    ),
    Operator(
        name="adamw_8bit_",
        samples=adamw_8bit_samples,
        errors=adamw_8bit_errors,
        reference=reference.adamw_8bit_,
        mutates=tuple(range(8)),
        exact=True,
    ),
    Operator(
        name="split_master",
        samples=split_master_samples,
        errors=split_master_errors,
        reference=reference.split_master,
        dtypes=(torch.float32,),
        exact=True,
    ),
    Operator(
        name="join_master",
        samples=join_master_samples,
        errors=join_master_errors,
        reference=reference.join_master,
        dtypes=(torch.float32,),
        exact=True,
    ),
)
