#!/usr/bin/env bash
# Usage: test.sh BUILD. Every test: formatting and types, Catch2 through ctest, pytest (operators, interop, packaging), and pytest
# on kernels of CUDA that are executed on the host.
# A stage that fails does not hide the next ones; the runners' own summary lines come last.
# pytest runs in WORKERS processes of one thread each (default: a processor each, 8 at most): most tests are small calls, which
# threads would not make faster. Tests of threads set their own number. A file stays in one process: its tests share references.
set -uo pipefail
build=$1
logs=$build/test-logs
mkdir -p "$logs"
failed=()
processors=$(nproc)
workers=${WORKERS:-$((processors < 8 ? processors : 8))}

stage() {  # NAME COMMAND...
  local name=$1 started=$SECONDS
  shift
  echo "==> $name: $*"
  "$@" 2>&1 | tee "$logs/$name.log" || failed+=("$name")
  echo "==> $name took $((SECONDS - started)) s"
}

stage lint make --no-print-directory lint-quick
stage ctest ctest --test-dir "$build" --output-on-failure --no-tests=error
stage pytest env OMP_NUM_THREADS=1 python -m pytest --numprocesses "$workers" --dist loadfile
stage cuda-on-host scripts/test_cuda_on_host.sh "$build"

echo "==> summary, $SECONDS s"
grep -E '^[0-9]+% tests passed' "$logs/ctest.log"
tail -n 1 "$logs/pytest.log"
grep -E '^=* ?[0-9]+ (passed|failed)' "$logs/cuda-on-host.log"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
