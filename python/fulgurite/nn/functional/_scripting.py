"""What TorchScript needs of functions that return ``out``, or ``(out, lse)`` with return_lse."""

import functools
import inspect
import linecache
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torch._jit_internal import boolean_dispatched

from fulgurite.nn.functional._draw import uniform_like


def first_result(function: Callable[..., Any], name: str) -> Callable[..., Tensor]:
    """A function of the same arguments that returns the first of the function's results.

    TorchScript compiles the text of a function, so one is written, and ``inspect`` finds it.
    """
    signature = inspect.signature(function).replace(return_annotation=Tensor)
    passed = ", ".join(signature.parameters)
    text = f"def {name}{signature}:\n    return {function.__name__}({passed})[0]\n"
    file = f"<{function.__module__}.{name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope = {**function.__globals__, function.__name__: function}
    exec(compile(text, file, "exec"), scope)
    made: Callable[..., Tensor] = scope[name]
    return made


def with_optional_lse(with_lse: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """The public function of one that always returns ``(out, lse)``; its last argument, return_lse,
    says what the public one returns.

    TorchScript picks by the literal value of return_lse, as in torch.nn.functional.
    (torch._jit_internal.boolean_dispatch would register the same and return a function that
    torch.compile refuses to trace.)
    """
    name = with_lse.__name__.removeprefix("_")
    without = first_result(with_lse, f"{name}_without_lse")
    index = list(inspect.signature(with_lse).parameters).index("return_lse")

    @functools.wraps(with_lse)
    def public(*args: Any, **kwargs: Any) -> Any:
        wanted = args[index] if len(args) > index else kwargs.get("return_lse", False)
        return with_lse(*args, **kwargs) if wanted else without(*args, **kwargs)

    public.__name__ = public.__qualname__ = name
    choice: dict[str, Any] = {
        "if_true": with_lse,
        "if_false": without,
        "index": index,
        "default": False,
        "arg_name": "return_lse",
    }
    boolean_dispatched[public] = choice
    return public


def philox_for(dropout_p: float, philox: Optional[Tensor], query: Tensor) -> Optional[Tensor]:
    """The given philox, or [seed, offset] from torch's default generator where dropout needs it."""
    if dropout_p > 0.0 and philox is None:
        drawn = uniform_like(torch.zeros(2, dtype=torch.float64, device="cpu"))
        return (drawn * 2.0**53).to(torch.int64).to(query.device)
    return philox
