#!/usr/bin/env bash
# Sees to it that the tests of the dashboard find a Chromium. Installs Debian's when it may; where it may not, the
# tests skip and say so, except with CI set: there a missing browser is a failure.
set -euo pipefail

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then exit 0; fi
done

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium for the tests of the dashboard …" >&2
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    export DEBIAN_FRONTEND=noninteractive
    if apt-get update >"$log" 2>&1 && apt-get install -y chromium >>"$log" 2>&1; then exit 0; fi
    tail -n 20 "$log" >&2
fi

echo "no Chromium found: the tests of the dashboard cannot run" >&2
echo "hint: apt-get install chromium (as root), or your system's own package of Chromium or Chrome" >&2
if [ -n "${CI:-}" ]; then exit 1; fi
