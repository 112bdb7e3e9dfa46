#!/usr/bin/env bash
# Installs the browser that tests of the report page show it in: Debian's chromium, as root.
# Exit status 3, and one line, where that is not possible or takes too long; the tests are skipped.
set -euo pipefail

SECONDS_TO_DOWNLOAD=60

cannot() {
    echo "chromium: pages cannot be tested in a browser here: $1" >&2
    exit 3
}

if type chromium &>/dev/null || type chromium-browser &>/dev/null || type google-chrome &>/dev/null; then
    exit 0
fi
[[ $(id -u) == 0 ]] || cannot "installing chromium needs root"
command -v apt-get >/dev/null || cannot "chromium is installed by apt-get, which is not here"
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
# Only the download has a limit: an installation that is cut off would be left half done.
{ apt-get update -qq && timeout "$SECONDS_TO_DOWNLOAD" \
    apt-get install -y -qq --no-install-recommends --download-only chromium; } \
    >"$log" 2>&1 || cannot "apt-get could not download chromium: $(tail -n 1 "$log")"
apt-get install -y -qq --no-install-recommends chromium >"$log" 2>&1 \
    || cannot "apt-get could not install chromium: $(tail -n 1 "$log")"
rm -f "$log"
