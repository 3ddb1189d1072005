#!/usr/bin/env bash
# Makes .venv where there is none and installs locks into it, in the order given:  scripts/setup.sh requirements.txt
#
# With uv where it is installed (seconds), else, or should uv fail, with venv and pip. Hashes are checked either way; the
# project itself comes last, editable, built with nothing but what the lock brought. PYTHON names the interpreter to use;
# without it the first on PATH that is new enough is taken.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
uv=$(command -v uv || true)

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

python=${PYTHON:-}
if [ -z "$python" ]; then
    for python in python3 python3.13 python3.12 python3.11 python; do
        if new_enough "$python"; then break; fi
    done
fi
if ! new_enough "$python"; then
    echo "Python 3.11 or newer is needed; '$python' is older or missing. Name one: PYTHON=/path/to/python3.12 make ..." >&2
    exit 1
fi

with_uv() {
    [ -n "$uv" ] || return 1
    new_enough $venv/bin/python || "$uv" venv --quiet --clear --python "$python" $venv || return 1
    for lock in "$@"; do
        "$uv" pip install --quiet --python $venv/bin/python --require-hashes --requirement "$lock" || return 1
    done
    "$uv" pip install --quiet --python $venv/bin/python --no-deps --no-build-isolation --editable .
}

with_pip() {
    new_enough $venv/bin/python && $venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear $venv
    for lock in "$@"; do
        $venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement "$lock"
    done
    $venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
}

echo "Installing into $venv: $*" >&2
with_uv "$@" || with_pip "$@"
