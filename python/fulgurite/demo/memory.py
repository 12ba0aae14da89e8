"""Peak of the memory that tensors take during a call, as torch's allocator reports it."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """Run ``call()``; returns the most bytes allocated at once beyond those before.

    Counted at the allocator, not as resident memory: freed pages that malloc keeps would otherwise
    make whoever runs second look free.
    """
    with (
        quiet_stderr(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as trace,
    ):
        call()
    kineto = trace.profiler
    assert kineto is not None
    assert kineto.kineto_results is not None
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep what C++ writes to stderr (the profiler greets) unless the block raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            file.seek(0)
            os.write(2, file.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
