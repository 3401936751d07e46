#!/usr/bin/env bash
# What the browser tests need and pip cannot bring: Chromium with its driver, the page's assets,
# nginx to stand before the server, a store that servers share; and axe-core, which looks for what keeps people out.
# Does what it can (apt as root, npm where it is installed) and says what it could not; without
# Chromium or the assets the tests are skipped, except where CI is set.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}

packages=()
{ command -v chromium && command -v chromedriver; } >/dev/null ||
  packages+=(chromium chromium-driver fonts-liberation)
command -v npm >/dev/null || packages+=(nodejs npm)
PATH=$PATH:/usr/sbin command -v nginx >/dev/null || packages+=(nginx)
{ command -v valkey-server || command -v redis-server; } >/dev/null || packages+=(redis-server)
if [ ${#packages[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq &&
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${packages[@]}" >/dev/null ||
      echo "note: apt-get could not install ${packages[*]}" >&2
  else
    echo "note: install ${packages[*]} to run the browser tests" >&2
  fi
fi
# Not every distribution has Firefox as a package; its one test is skipped without it.
if ! command -v firefox >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends firefox-esr >/dev/null 2>&1 ||
    echo "note: install Firefox to test the page there too" >&2
fi
if command -v npm >/dev/null; then
  "$python" -m samtrt.server.assets || echo "note: the page's assets are not installed" >&2
  npm ci --prefix tests/browser --loglevel=error >/dev/null || echo "note: axe-core is not installed" >&2
else
  echo "note: install Node.js with npm to get the page's assets" >&2
fi
exit 0
