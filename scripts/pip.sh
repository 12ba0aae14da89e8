#!/usr/bin/env bash
# pip of the environment on PATH, quiet; brings cmake from PyPI where the system's is missing or too old.
set -euo pipefail
arguments=("$@")
version=$(cmake --version 2>/dev/null | sed -n '1s/^cmake version //p' || true)
if [ "$(printf '%s\n' 3.25 "${version:-0}" | sort -V | head -1)" != 3.25 ]; then arguments=(cmake==4.0.3 "$@"); fi
exec python -m pip --disable-pip-version-check install --quiet "${arguments[@]}"
