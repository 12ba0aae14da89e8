"""Settings of the whole suite: the backend, the exhaustive grids, hypothesis, instruction sets.

``--backend`` chooses whose kernels are tested: the CPU's, those of CUDA executed on the host, or a
card's. Of the two last only the files of ``cuda_families`` are run, and float64 must raise.
``FULGURITE_FULL=1`` runs the tests marked ``full`` too, and hypothesis with more examples.
A test that takes ``backend`` runs once on every device and set of kernels that the machine has;
``isa`` is the set's name alone.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

import cuda_families
from fulgurite.testing import Operator
from fulgurite.testing.backend import NAMES, Backend, backends, choose, current, using

# common_checks asks for the backend when it is imported, so nothing here imports it.
FULL = os.environ.get("FULGURITE_FULL") == "1"

for _profile, _examples in (("quick", 30), ("full", 500)):
    settings.register_profile(
        _profile,
        derandomize=True,
        max_examples=_examples,
        deadline=None,
        print_blob=True,
        # `backend` is the same for every example, so it need not be set up again for each.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
settings.load_profile("full" if FULL else "quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=NAMES, default="cpu", help="whose kernels are tested")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: exhaustive; runs with FULGURITE_FULL=1 only")
    try:
        choose(config.getoption("--backend"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="exhaustive: set FULGURITE_FULL=1")
    for item in items:
        if not FULL and item.get_closest_marker("full"):
            item.add_marker(skip)
    on_cuda = current().kernels == "cuda"
    apply = [item for item in items if cuda_families.applies(item, on_cuda)]
    if len(apply) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(apply)])
        items[:] = apply


@pytest.hookimpl(trylast=True)  # the sets change fastest: they share the references of a case
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends(), ids=lambda b: b.set, indirect=True)


def without_kernels(item: pytest.Function) -> bool:
    """Whether the test is of a dtype that the backend has no kernels for."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    dtype, operator = parameters.get("dtype"), parameters.get("operator")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        return False
    if dtype in current().dtypes:
        return False
    if not isinstance(operator, Operator):
        return True
    name, sample = operator.name, str(parameters["sample"])
    from common_checks import samples_of

    def dtypes(of: torch.dtype) -> list[torch.dtype]:
        return [t.dtype for t in samples_of(name, of, 0)[sample].tensors()]

    return dtypes(dtype) != dtypes(torch.float32)  # lists may be empty, and hyper is float64


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """What has no kernels raises, and says so."""
    if not without_kernels(pyfuncitem):
        return (yield)
    with pytest.raises(NotImplementedError, match=r"^fulgurite::\w+: float64 runs on the CPU only"):
        yield
    return True


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The device and the set of kernels that the test runs on: once on every one of the machine."""
    with using(request.param.set) as selected:
        yield selected


@pytest.fixture
def isa(backend: Backend) -> str:
    """The set of ``backend``."""
    return backend.set
