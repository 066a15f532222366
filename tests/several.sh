#!/usr/bin/env bash
# Run the tests that start several processes: whole stories beside the smaller ones, each set one after another.
# They run without coverage, so that processes are as they are in use.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
options=(-m e2e --durations=10)
stories=(stories "${options[@]}" tests/e2e)
parts=(parts "${options[@]}" --ignore=tests/e2e)
output=$(mktemp)
trap 'rm -f "$output"' EXIT
bash tests/twice.sh --first "${stories[@]}" >"$output" 2>&1 &
running=$!
trap 'pkill -TERM -P "$running"; kill "$running" 2>/dev/null' INT TERM
bash tests/twice.sh --first "${parts[@]}"
part=$?
wait "$running"
story=$?
cat "$output"
if [ "$part" -eq 1 ]; then
    bash tests/twice.sh --again "${parts[@]}"
    part=$?
fi
if [ "$story" -eq 1 ]; then
    bash tests/twice.sh --again "${stories[@]}"
    story=$?
fi
exit $((part != 0 || story != 0))
