#!/usr/bin/env bash
# Usage: try_wheel.sh PYTHON WHEEL TORCH... The wheel in bare environments, one for each version of torch: the README's first example.
set -euo pipefail
python=$1 wheel=$(realpath "$2") example=$(realpath tests/packaging/first_example.py)
shift 2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for torch; do
  echo "==> $(basename "$wheel") with torch $torch and $("$python" --version)"
  "$python" -m venv "$folder/$torch"
  "$folder/$torch/bin/python" -m pip --disable-pip-version-check install --quiet "torch==$torch" "$wheel"
  (cd "$folder" && env -u PYTHONPATH "$folder/$torch/bin/python" "$example")
  rm -rf "${folder:?}/$torch"
done
