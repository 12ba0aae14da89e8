#!/usr/bin/env bash
# Usage: system.sh PYTHON. Looks for what PyPI does not have: a C++ compiler, git, Python's venv and headers, Catch2.
# As root on Debian the missing packages are installed, otherwise one line says what to run.
set -euo pipefail
python=$1
missing=()

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  { echo "fulgurite needs Python 3.11 or newer; PYTHON=… names another" >&2; exit 1; }
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
[ -e "$include/Python.h" ] || missing+=(python3-dev)
command -v g++ >/dev/null || missing+=(g++)
command -v git >/dev/null || missing+=(git)
if ! echo '#if !__has_include(<catch2/catch.hpp>) && !__has_include(<catch2/catch_all.hpp>)
#error
#endif' | g++ -E -x c++ - >/dev/null 2>&1; then missing+=(catch2); fi

[ ${#missing[@]} -eq 0 ] && exit 0
install="apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $install
else
  echo "fulgurite needs system packages that are missing here; run: sudo $install" >&2
  exit 1
fi
