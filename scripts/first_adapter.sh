#!/usr/bin/env bash
# From an empty folder to an adapter with its first change, as a stranger does it, by the clock:  scripts/first_adapter.sh
#
# An environment with the mapper's wheel; new-adapter; its first run, green; then a change (a refusal that the scaffold does
# not know), seen red, then green. Fails beyond MOST_S seconds, or where a step does not do what the guide says.
set -euo pipefail
cd "$(dirname "$0")/.."

checkout=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$checkout/.venv/bin/uv" build --quiet --wheel --no-build-isolation --python .venv/bin/python --out-dir "$folder/dist" .

cd "$folder"
began=$SECONDS
step() { echo "$((SECONDS - began)) s: $*"; }
python=$folder/venv/bin/python

"$checkout/.venv/bin/python" -m venv venv
"$python" -m pip install --quiet "$(echo dist/*.whl)[conformance]"
step "the mapper is installed"
venv/bin/promotions-mapper new-adapter acme
cd promotions-acme
make --silent PYTHON="$python" install
make --silent PYTHON="$python" test
step "the first run is green"

# Acme refuses a code that is not valid yet. First the emulator and the test, which is red; then the word for it.
sed -i 's/words = {/words = {"SOON-5": "EARLY", /' promotions_acme/sandbox.py
sed -i 's/refused = {/refused = {"SOON-5": Reason.NOT_STARTED, /' tests/test_conformance.py
told=$("$python" -m pytest -q -k expected_reasons) && { echo "$told"; echo "the change is not noticed" >&2; exit 1; }
grep -q "SOON-5: should be refused as not_started" <<<"$told"
step "the change is seen as missing"
sed -i 's/^WORDS = {/WORDS = {\n    "EARLY": Reason.NOT_STARTED,/' promotions_acme/reasons.py
make --silent PYTHON="$python" test
step "the first change is green"
[ $((SECONDS - began)) -le "${MOST_S:-300}" ] || { echo "that is too long" >&2; exit 1; }
