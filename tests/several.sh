#!/usr/bin/env bash
# Run the tests that start several processes, in three sets side by side, each one test after another: they wait for
# processes more than they compute. They run without coverage, so that processes are as they are in use.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
options=(-m e2e --durations=10)
faults=tests/e2e/test_federation_faults.py
many=tests/appliance/federation/test_many_sites_e2e.py
declare -A sets=(
    [faults]="$faults"
    [stories]="tests/e2e --ignore=$faults $many"
    [parts]="--ignore=tests/e2e --ignore=$many"
)
folder=$(mktemp -d)
declare -A running=()
trap 'rm -rf "$folder"' EXIT
trap 'for pid in "${running[@]}"; do pkill -TERM -P "$pid"; kill "$pid" 2>/dev/null; done' INT TERM
for name in "${!sets[@]}"; do
    # shellcheck disable=SC2086 # the words of a set are arguments
    bash tests/twice.sh --first "$name" "${options[@]}" ${sets[$name]} >"$folder/$name" 2>&1 &
    running[$name]=$!
done
failed=0
declare -A codes=()
for name in "${!sets[@]}"; do
    wait "${running[$name]}"
    codes[$name]=$?
    cat "$folder/$name"
done
for name in "${!sets[@]}"; do
    if [ "${codes[$name]}" -eq 1 ]; then
        # shellcheck disable=SC2086 # as above
        bash tests/twice.sh --again "$name" "${options[@]}" ${sets[$name]}
        codes[$name]=$?
    fi
    [ "${codes[$name]}" -eq 0 ] || failed=1
done
exit $failed
