#!/usr/bin/env bash
# Usage: keep_ptxas_info.sh NVCC ARGUMENTS… -o OBJECT …. Runs the compiler; what ptxas says of kernels goes to OBJECT.ptxas, where
# nobody has to read it, all else to where it went.
set -uo pipefail
object=
for ((i = 1; i < $#; ++i)); do
  [ "${!i}" = -o ] && j=$((i + 1)) && object=${!j}
done
said=$(mktemp)
trap 'rm -f "$said"' EXIT
"$@" 2>"$said"
status=$?
info='^ptxas info|^ +[0-9]+ bytes stack frame'
grep -E "$info" "$said" >"$object.ptxas"
grep -Ev "$info" "$said" >&2
exit $status
