"""Check that kernel objects define symbols only inside the namespace of their instruction set.

An inline function of an AVX-512 object that lies elsewhere (std::, fulgurite::) is a weak symbol,
and the linker keeps one copy for the whole program: an older machine could be handed that one.

    check_objects.py [--nm NM] ISA OBJECT...
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys


def foreign_symbols(nm: str, isa: str, path: str) -> list[str]:
    """Defined global or weak symbols of the object at ``path`` outside ``fulgurite::<isa>``."""
    command = [nm, "--defined-only", "--extern-only", "-C", path]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # "address type name": vtables and guards read "vtable for fulgurite::avx2::…"
    names = [line.split(maxsplit=2)[2] for line in listing.splitlines() if line.strip()]
    # A function that returns a vector begins with "float __vector(16) ".
    names = [re.sub(r"__vector\(\d+\)", "__vector", name) for name in names]
    return [name for name in names if f"fulgurite::{isa}::" not in name.split("(")[0]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", default="nm")
    parser.add_argument("isa")
    parser.add_argument("objects", nargs="+")
    arguments = parser.parse_args()
    failures = 0
    for path in arguments.objects:
        for name in foreign_symbols(arguments.nm, arguments.isa, path):
            print(f"{path}: {name} is outside fulgurite::{arguments.isa}")
            failures += 1
    print(f"{len(arguments.objects)} objects, {failures} symbols outside their namespace")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
