#!/usr/bin/env bash
# Writes the locks from pyproject.toml: for every supported Python and platform, with hashes, and without the name of
# any registry, so that they install from whichever one pip or uv is set up to use.
#
#   requirements.txt        what the service runs with, and what builds it
#   requirements-dev.txt    that, and what the tests need
#   requirements-bench.txt  what the service runs with, and what make bench compares it with
#   requirements-tools.txt  the tools of make lint and make lock, beside requirements-dev.txt
#
# Pins stay as they are where they still fit; --upgrade takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."

lock() {
    local output=$1
    shift
    ${UV:-.venv/bin/uv} pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --output-file "$output" "$@"
}

lock requirements.txt pyproject.toml --group build "$@"
lock requirements-dev.txt pyproject.toml --all-extras --group build --group dev --constraints requirements.txt "$@"
lock requirements-bench.txt pyproject.toml --group build --group bench --constraints requirements-dev.txt "$@"
lock requirements-tools.txt --group tools --constraints requirements-dev.txt "$@"
# The example's engine is a lock of its own: nothing of it is the project's.
lock examples/oscar/requirements.txt pyproject.toml --extra conformance --group build examples/oscar/shop/requirements.in \
    --constraints requirements-dev.txt "$@"
