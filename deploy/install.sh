#!/usr/bin/env bash
# Make a virtual environment with Cloister in it. Usage: install.sh VENV
#   PYTHON           interpreter to use (3.11 or 3.12)
#   TORCH_INDEX_URL  package index that holds the wanted build of PyTorch
#   GPU=1            accept PyTorch's CUDA packages (several gigabytes)
set -euo pipefail

venv=${1:?usage: install.sh VENV}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

if ! command -v "$python" >/dev/null; then
    echo "install: $python not found; expected Python 3.11 or 3.12 (set PYTHON=...)" >&2
    exit 2
fi
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))'; then
    echo "install: $("$python" --version) is not supported; expected Python 3.11 or 3.12 (set PYTHON=...)" >&2
    exit 2
fi

make_venv() {
    "$python" -m venv "$venv" 2>/dev/null
}

if [ ! -x "$venv/bin/python" ] && ! make_venv; then
    rm -rf "$venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "install: this Python lacks the venv module; installing the distribution's python3-venv"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv
        make_venv
    else
        echo "install: this Python lacks the venv module; install the package python3-venv and try again" >&2
        exit 2
    fi
fi

# Compiled at the end by all processors, which pip does with one.
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
install=("${pip[@]}" install --quiet --no-compile)

torch=$(sed -n 's/^ *"\(torch==[^"]*\)",$/\1/p' "$here/pyproject.toml")
index=()
if [ -n "${TORCH_INDEX_URL:-}" ]; then
    index=(--index-url "$TORCH_INDEX_URL")
fi

if ! "$venv/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '${torch#torch==}')" 2>/dev/null; then
    plan=$(mktemp)
    trap 'rm -f "$plan"' EXIT
    "${pip[@]}" install --quiet --dry-run --no-deps --report "$plan" "${index[@]}" "$torch"
    if [ "${GPU:-}" != 1 ] && "$venv/bin/python" - "$plan" <<'PY'
import json
import sys

from pip._vendor.packaging.requirements import Requirement

items = json.load(open(sys.argv[1]))["install"]
needs = [Requirement(text) for item in items for text in item["metadata"].get("requires_dist", [])]
wanted = [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
sys.exit(0 if any("nvidia" in name or "cuda" in name for name in wanted) else 1)
PY
    then
        cat >&2 <<EOF
install: stopped. $torch would bring the CUDA packages, several gigabytes that a node without a GPU cannot use.
  For a machine without a GPU: make install TORCH_INDEX_URL=<the CPU index that PyTorch's "Get started" page names>
  For a machine with a GPU:    make install GPU=1
EOF
        exit 2
    fi
    "${install[@]}" -c "$here/deploy/constraints.txt" "${index[@]}" "$torch"
fi

echo "install: installing Cloister and its libraries"
"${install[@]}" -c "$here/deploy/constraints.txt" -e "$here"
# By its metadata the text detector brings opencv-python, which needs libGL and overwrites the headless build.
# pyproject.toml names everything else that it needs.
"${install[@]}" --no-deps "$(grep '^rapidocr-onnxruntime==' "$here/deploy/constraints.txt")"
# Libraries hold a few files that no Python 3 compiles; pip leaves them, too.
"$venv/bin/python" -m compileall -q -q -j 0 "$venv/lib" || true
echo "install: done; the command is $venv/bin/cloister"
