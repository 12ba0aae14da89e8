#!/usr/bin/env bash
# Usage: sanitize.sh BUILD. The kernels and their C++ tests, built for the machine's own instruction sets and run under ASan
# and UBSan.
set -euo pipefail
build=$1
isas=$(python -c "from fulgurite.testing.backend import backends; print(';'.join(b.set for b in backends()))")
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DFULGURITE_PYTHON=OFF -DFULGURITE_TESTS=ON \
  -DFULGURITE_CUDA=OFF -DFULGURITE_SANITIZE=address,undefined -DFULGURITE_ISAS="$isas" \
  -DPython_EXECUTABLE="$(command -v python)"
cmake --build "$build"
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
ctest --test-dir "$build" --output-on-failure --no-tests=error
