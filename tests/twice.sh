#!/usr/bin/env bash
# Run pytest. Where at most three tests fail, they run once more, alone: a busy machine may be late, a defect fails again.
# What passes only then is named, to be mended.
# Usage: tests/twice.sh ARGUMENTS...
set -uo pipefail
cd "$(dirname "$0")/.." || exit
cache=.pytest_cache/twice
failed=$cache/v/cache/lastfailed
rm -rf "$cache"
.venv/bin/pytest -o cache_dir="$cache" "$@"
code=$?
if [ "$code" -ne 1 ] || [ ! -f "$failed" ]; then
    exit "$code"
fi
count=$(.venv/bin/python -c 'import json, sys; print(len(json.load(open(sys.argv[1]))))' "$failed") || exit 1
if [ "$count" -gt 3 ]; then
    exit 1
fi
echo "Failed on a busy machine, once more alone:"
cat "$failed"
.venv/bin/pytest -o cache_dir="$cache" --last-failed "$@" -n 0
