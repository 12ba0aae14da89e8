#!/usr/bin/env bash
# Usage: check_kernel.sh FILE.cpp [FLAGS…]. Compiles a program with kernels written on csrc/cuda/cux.h for the checker and runs
# it in every schedule, on the cards of CUX_ARCH (default "80 90"). Fails if it does, or if the checker reports anything.
# FLAGS go to the compiler: -I, -D. The executor is compiled once, into CUX_BUILD (default: a folder of the user's under
# TMPDIR). CUX_LINK names objects that the program needs besides.
set -euo pipefail
[ $# -ge 1 ] && [ -f "$1" ] || { sed -n 's/^# Usage: /usage: /p' "$0" >&2; exit 2; }
file=$(realpath "$1")
shift
csrc=$(realpath "$(dirname "$0")/../csrc")
cxx=${CXX:-g++}
build=${CUX_BUILD:-${TMPDIR:-/tmp}/cux-$(id -un)}
mkdir -p "$build"

executor=$build/executor.o
if [ -z "$(find "$executor" -newer "$csrc/cuda" 2>/dev/null)" ] || [ -n "$(find "$csrc/cuda" -newer "$executor")" ]; then
  for source in "$csrc"/cuda/host/*.cpp; do echo "#include \"$source\""; done >"$build/executor.cpp"
  "$cxx" -std=c++20 -O2 -g1 -I"$csrc" -c "$build/executor.cpp" -o "$executor"
fi
program=$build/$(basename "$file" .cpp)
mapfile -t flags <"$csrc/cuda/host/checked_flags.txt"
"$cxx" -std=c++20 "${flags[@]}" -I"$csrc" "$@" -c "$file" -o "$program.o"
read -ra beside <<<"${CUX_LINK:-}"
"$cxx" "$executor" "$program.o" "${beside[@]}" -o "$program"

failed=0
for arch in ${CUX_ARCH:-80 90}; do
  status=0
  CUX_SCHEDULE=all CUX_ARCH=$arch "$program" 2>"$program.reports" || status=$?
  cat "$program.reports" >&2
  if [ "$status" -ne 0 ]; then
    echo "sm_$arch: the program failed ($status)"
    failed=1
  elif grep -q '^cux: \[' "$program.reports"; then
    echo "sm_$arch: the checker has found something"
    failed=1
  else
    echo "sm_$arch: nothing found"
  fi
done
exit $failed
