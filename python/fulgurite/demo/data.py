"""Text as bytes: where it comes from, its held-out part, and the batch of each step."""

import hashlib
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fulgurite.demo.errors import UserError

HELD_OUT_SHARE = 20  # one byte in 20
MAX_BYTES = 32 << 20
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests"}


def library_sources() -> bytes:
    """Python sources of the running interpreter's standard library, files in a fixed mixed order.

    Mixed, so that the end, which is held out, is made of the same kind of text as the rest.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts)
    ]
    random.Random(0).shuffle(files)
    return b"".join(path.read_bytes() for path in files)[:MAX_BYTES]


def read_text(path: Path | None) -> bytes:
    """The bytes of a file, or of the standard library's sources for None.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    try:
        text = library_sources() if path is None else path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    if not text:
        raise UserError(f"{path or 'the standard library'} is empty")
    return text


@dataclass(frozen=True)
class Corpus:
    """A text cut in two: training bytes and, at its end, held-out bytes."""

    train: Tensor  # (bytes,) uint8
    held_out: Tensor  # (bytes,) uint8
    digest: str

    @classmethod
    def from_bytes(cls, text: bytes, sequence: int, name: str) -> "Corpus":
        """Split a text; sequences are of ``sequence`` bytes and the one that follows.

        Raises:
            UserError: either part would be shorter than one sequence.
        """
        window = sequence + 1
        if len(text) < 2 * window:
            raise UserError(
                f"{name} is too short: {len(text)} bytes, at least {2 * window} are needed"
            )
        held_out = max(len(text) // HELD_OUT_SHARE, window)
        data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        digest = hashlib.sha256(text).hexdigest()
        return cls(data[:-held_out], data[-held_out:], digest)

    def batch(self, step: int, size: int, sequence: int, seed: int) -> Tensor:
        """The batch of a step, (size, sequence + 1) int64: a function of seed and step alone."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        starts = torch.randint(len(self.train) - sequence, (size,), generator=generator)
        return windows(self.train, starts, sequence + 1)

    def held_out_sequences(self, count: int, sequence: int) -> Tensor:
        """At most ``count`` evenly spaced sequences, (count, sequence + 1) int64."""
        count = min(count, len(self.held_out) // (sequence + 1))
        last = len(self.held_out) - sequence - 1
        starts = torch.linspace(0, last, count, dtype=torch.float64).long()
        return windows(self.held_out, starts, sequence + 1)


def windows(data: Tensor, starts: Tensor, length: int) -> Tensor:
    """The ``length`` bytes from each start, (starts, length) int64."""
    return data[starts[:, None] + torch.arange(length)].long()
