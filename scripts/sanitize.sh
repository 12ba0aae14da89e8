#!/usr/bin/env bash
# Usage: sanitize.sh BUILD. The kernels and their C++ tests, built and run under ASan and UBSan.
set -euo pipefail
build=$1
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DFULGURITE_PYTHON=OFF -DFULGURITE_TESTS=ON \
  -DFULGURITE_SANITIZE=address,undefined -DPython_EXECUTABLE="$(command -v python)"
cmake --build "$build"
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
ctest --test-dir "$build" --output-on-failure --no-tests=error
