#!/usr/bin/env bash
# Known vulnerabilities of what the locks pin: pip-audit for Python, npm audit for the page.
# Both ask an advisory service over the network; a service that is not reached is a failure.
set -uo pipefail
cd "$(dirname "$0")/.."
command -v pip-audit > /dev/null || { echo "error: pip-audit is not installed; pip install pip-audit" >&2; exit 1; }
status=0
for lock in locks/*.txt; do
  echo "== $lock"
  pip-audit --requirement "$lock" --disable-pip --no-deps --strict --progress-spinner off || status=1
done
echo "== samtrt/server/package-lock.json"
npm audit --prefix samtrt/server --package-lock-only || status=1
exit "$status"
