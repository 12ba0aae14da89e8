"""Settings of the whole suite: the exhaustive grids, hypothesis, and the instruction sets.

``FULGURITE_FULL=1`` runs the tests marked ``full`` too, and hypothesis with more examples.
A test that takes ``backend`` runs once on every device and set of kernels that the machine has;
``isa`` is the set's name alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from common_checks import FULL
from fulgurite.testing.backend import Backend, backends, using

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


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: exhaustive; runs with FULGURITE_FULL=1 only")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="exhaustive: set FULGURITE_FULL=1")
    for item in items:
        if not FULL and item.get_closest_marker("full"):
            item.add_marker(skip)


@pytest.hookimpl(trylast=True)  # the sets change fastest: they share the references of a case
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends(), ids=lambda b: b.set, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The device and the set of kernels that the test runs on: once on every one of the machine."""
    with using(request.param.set) as selected:
        yield selected


@pytest.fixture
def isa(backend: Backend) -> str:
    """The set of ``backend``."""
    return backend.set
