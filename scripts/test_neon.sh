#!/bin/sh
# Builds the kernels and their tests for arm64 (baseline and neon) and runs them under qemu-user. Needs Debian's
# g++-aarch64-linux-gnu and qemu-user. Options are passed to ctest: scripts/test_neon.sh -R simd
set -eu
cd "$(dirname "$0")/.."
for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
  command -v "$tool" >/dev/null || { echo "$tool not found: apt install g++-aarch64-linux-gnu qemu-user" >&2; exit 2; }
done
cmake -S . -B build-neon -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake -DFULGURITE_KERNELS_ONLY=ON
cmake --build build-neon -j "${JOBS:-2}"
exec ctest --test-dir build-neon --output-on-failure "$@"
