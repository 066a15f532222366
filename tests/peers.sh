#!/usr/bin/env bash
# Install the real peers that the tests speak with, where this machine lets us. Tests whose peer is missing
# skip with a reason, except in CI (CI=true), where everything must be there.
set -euo pipefail

packages=(dcmtk orthanc orthanc-dicomweb dicom3tools chromium postgresql nginx systemd shellcheck procps gcc libc6-dev)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "peers: installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
elif [ "${CI:-}" = true ]; then
    echo "peers: missing in CI: ${missing[*]}" >&2
    exit 1
else
    echo "peers: not installed, their tests will skip: ${missing[*]}"
fi
