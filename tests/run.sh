#!/usr/bin/env bash
# Installs what is missing, then runs the checks (ruff, mypy) and the tests.
#
#   bash tests/run.sh                               everything but the long tests
#   bash tests/run.sh --long                        the long tests too
#   bash tests/run.sh tests/config -k nearest -x    the named tests alone, without the checks; pytest's options serve
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh

names_tests() {
    local argument
    for argument in "$@"; do
        if [[ -e "${argument%%::*}" ]]; then return 0; fi
    done
    return 1
}

if ! names_tests "$@"; then
    echo "run: ruff"
    .venv/bin/python -m ruff check .
    echo "run: mypy"
    .venv/bin/python -m mypy
fi
echo "run: pytest"
exec .venv/bin/python -m pytest "$@"
