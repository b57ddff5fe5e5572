#!/bin/sh
# Makes .venv with the pins of requirements-cpu.txt; does nothing where it has them already.
#   PYTHON       another Python than the first on PATH that fits
#   TORCH_INDEX  where torch's CPU build is, when pip knows none; else PyTorch's own index
# Nothing is downloaded, and no .venv is removed, before all that can be checked has been.
set -eu
trap 'exit 130' INT
cd "$(dirname "$0")/.."
: "${TORCH_INDEX:=https://download.pytorch.org/whl/cpu}"
# A copy of the pins, made last: after an interrupted setup, and for other pins, .venv is made anew.
made=.venv/requirements-cpu.txt
if cmp -s requirements-cpu.txt "$made"; then exit 0; fi

lacks=
lack() { lacks="${lacks:+$lacks; }$1"; }

[ "$(uname -sm)" = "Linux x86_64" ] || lack "Linux on x86-64 (this is $(uname -sm))"

python=
fits="import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))"
for name in ${PYTHON:-python3 python3.12 python3.11}; do
    if "$name" -c "$fits" 2>/dev/null; then python=$name && break; fi
done
[ "$python" ] || lack "Python 3.11 or 3.12 with its venv module (Debian's python3-venv), as PYTHON=... if not on PATH"

# DeepSpeed compiles an op for Python when a training starts.
headers="import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path('include') + '/Python.h'))"
[ -z "$python" ] || "$python" -c "$headers" || lack "the headers of $("$python" --version) (Debian's python3-dev)"
cxx=${CXX:-c++}
command -v "${cxx%% *}" >/dev/null || lack "a C++ compiler, $cxx (Debian's g++)"

# What is free, and what an earlier .venv gives back.
room() { df -Pk "$1" | awk 'NR == 2 { print $4 }'; }
mine=$(du -sk .venv 2>/dev/null | cut -f1)
[ $(($(room .) + ${mine:-0})) -ge 4500000 ] || lack "4.5 GB of free disk here"
[ "$(room "${TMPDIR:-/tmp}")" -ge 1200000 ] || lack "1.2 GB of free disk in ${TMPDIR:-/tmp} (or a TMPDIR elsewhere)"

if [ "$lacks" ]; then
    echo "setup needs $lacks" >&2
    exit 1
fi

# torch by itself, so that the index that is added for it serves no other package. --no-deps because the pins
# are the full set, and because some packages name dependencies that are not wanted on a CPU (torchvision has
# no build that fits torch's CPU build).
torch=$(grep '^torch==' requirements-cpu.txt)
fill() {
    "$@" --no-deps "$torch" 2>/dev/null || {
        echo "$1 finds no $torch: adding $TORCH_INDEX"
        "$@" --no-deps --extra-index-url "$TORCH_INDEX" "$torch"
    } || return 1
    "$@" --no-deps -r requirements-cpu.txt && "$@" --no-deps --no-build-isolation --editable .
}

echo "installing the pinned packages into .venv (3 GB, a few minutes), with $("$python" --version)"
rm -rf .venv
"$python" -m venv .venv
if command -v uv >/dev/null && fill uv pip install --compile-bytecode --python .venv/bin/python; then
    :
else
    if command -v uv >/dev/null; then echo "uv could not install the pins: going on with pip"; fi
    fill .venv/bin/pip install
fi
cp requirements-cpu.txt "$made"
