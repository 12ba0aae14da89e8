#!/usr/bin/env bash
# Usage: test_cuda_on_host.sh BUILD [PYTEST ARGUMENTS…]. The test files of tests/python/cuda_families.py on kernels of CUDA that are
# executed on the host under the checker: in two schedules, with FULGURITE_FULL=1 each launch in all of them, bits compared.
set -euo pipefail
build=$1
shift
export FULGURITE_LIBRARY=$build/tests/cuda_on_host/libfulgurite_host_cuda_checked.so OMP_NUM_THREADS=1
if [ "${FULGURITE_FULL:-}" = 1 ]; then
  schedules=("CUX_SCHEDULE=all")
else
  schedules=("CUX_SCHEDULE=desc CUX_ASYNC=late" "CUX_SCHEDULE=random:1 CUX_ASYNC=early CUX_PREEMPT=7")
fi
mapfile -t files < <(python tests/python/cuda_families.py)
workers=${WORKERS:-$(($(nproc) < 8 ? $(nproc) : 8))}
for schedule in "${schedules[@]}"; do
  echo "==> $schedule"
  # shellcheck disable=SC2086 # two or three variables
  env $schedule python -m pytest --backend cuda-on-host --numprocesses "$workers" "${files[@]}" "$@"
done
