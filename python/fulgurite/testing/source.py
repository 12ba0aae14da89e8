"""A call written out as Python source, for the compilers that read source or trace constants."""

from __future__ import annotations

import linecache
import math
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.registry import Operator, Sample, named


def tensors_only(operator: Operator, sample: Sample) -> Sample:
    """The tensors and tensor lists of a call by name: the parameters of ``call_module``."""
    return Sample(sample.name, (), {k: v for k, v in named(operator, sample).items() if passed(v)})


def passed(value: Any) -> bool:
    """Whether an argument is a parameter of the function, and not a constant in its text."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)


def call_module(operator: Operator, sample: Sample) -> torch.nn.Module:
    """A module whose forward makes this call: tensors are parameters, constants are its text."""
    source = call_source(operator, sample)
    filename = f"<{operator.name} {sample.name}>"
    # TorchScript reads a function's source, which it finds here as if it were a file.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"torch": torch, "Tensor": Tensor}
    exec(compile(source, filename, "exec"), namespace)
    module: torch.nn.Module = type("Call", (torch.nn.Module,), {"forward": namespace["forward"]})()
    return module


def call_source(operator: Operator, sample: Sample) -> str:
    """The text of that forward, for example::

    def forward(self, query: Tensor, key: Tensor, value: Tensor):
        return torch.ops.fulgurite.attention(query=query, key=key, value=value, causal=True)
    """
    parameters, arguments = ["self"], []
    for argument, value in named(operator, sample).items():
        if passed(value):
            kind = "Tensor" if isinstance(value, Tensor) else "list[Tensor]"
            parameters.append(f"{argument}: {kind}")
            arguments.append(f"{argument}={argument}")
        else:
            arguments.append(f"{argument}={literal(value)}")
    call = f"torch.ops.fulgurite.{operator.name}({', '.join(arguments)})"
    statement = f"return {call}" if operator.op._schema.returns else call
    return f"def forward({', '.join(parameters)}):\n    {statement}\n"


def literal(value: Any) -> str:
    """A constant as source text."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    return repr(value)
