#!/usr/bin/env bash
# Run the tests that start several processes: whole stories beside the smaller ones, each set one after another.
# They run without coverage, so that processes are as they are in use.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
options=(-m e2e --durations=10)
stories=$(mktemp)
trap 'rm -f "$stories"' EXIT
bash tests/twice.sh stories "${options[@]}" tests/e2e >"$stories" 2>&1 &
running=$!
trap 'pkill -TERM -P "$running"; kill "$running" 2>/dev/null' INT TERM
bash tests/twice.sh parts "${options[@]}" --ignore=tests/e2e
parts=$?
wait "$running"
whole=$?
cat "$stories"
exit $((parts != 0 || whole != 0))
