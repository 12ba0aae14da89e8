#!/usr/bin/env bash
# Usage: wheel.sh FOLDER BUILD... Packs what the build folders hold, one for each minor version of torch, as one wheel in FOLDER and
# prints its path. auditwheel reads from the libraries how old a glibc and libstdc++ they run on and names the wheel so; what torch's
# own package brings is left to it.
set -euo pipefail
folder=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
FULGURITE_BUILT="$*" python -m pip --disable-pip-version-check wheel --quiet --no-build-isolation --no-deps --no-index \
  --wheel-dir "$work/packed" . >&2
auditwheel repair --exclude libtorch_cpu.so --exclude libc10.so --wheel-dir "$work/checked" "$work"/packed/*.whl >&2
twine check --strict "$work"/checked/*.whl >&2
mkdir -p "$folder"
cp "$work"/checked/*.whl "$folder"
echo "$folder/$(basename "$work"/checked/*.whl)"
