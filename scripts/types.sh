#!/usr/bin/env bash
# Do mypy and pyright find the mapper's types where an integrator has installed it: from its wheel, and editable?
# Makes an environment for each, and judges a file that is right and one that is wrong:  scripts/types.sh
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$PWD/.venv/bin
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$bin/uv" build --quiet --wheel --no-build-isolation --python "$bin/python" --out-dir "$folder/dist" .

cat >"$folder/right.py" <<'PYTHON'
from typing import assert_type

from mapper.adapter import Checkout, Conversation, Discount, EngineReply, EngineRequest, Outcome, money
from mapper.conformance.suite import Conformance
from mapper.sandbox.emulator import Emulator


def ask(checkout: Checkout) -> Conversation[Outcome]:
    reply = yield EngineRequest(operation="ask", method="GET", path="/", effect="none", repeatable=True)
    assert_type(reply, EngineReply)
    assert_type(money.to_minor(money.from_engine(5), checkout.digits), int)
    assert_type(checkout.cart[0].list_price, int)
    assert_type(Outcome().discounts, tuple[Discount, ...])
    return Outcome()


def books(emulator: Emulator, suite: Conformance) -> int:
    return suite.redeemed(emulator.books(), "session")
PYTHON
sed 's/return Outcome()/return "nothing"/; s/effect="none"/effect="some"/' "$folder/right.py" >"$folder/wrong.py"

judge() {
    local python=$1 what=$2
    echo "+ $what" >&2
    (
        cd "$folder"
        "$bin/mypy" --strict --python-executable "$python" right.py
        "$bin/pyright" --pythonpath "$python" right.py
        for check in "$bin/mypy --strict --python-executable" "$bin/pyright --pythonpath"; do
            found=$($check "$python" wrong.py) && { echo "finds nothing wrong: $check" >&2; exit 1; }
            grep -q '"some"\|Literal' <<<"$found" || { echo "$found" >&2; exit 1; }
        done
    )
}

for what in "$folder"/dist/*.whl "--editable ."; do
    "$bin/uv" venv --quiet --clear --python "$bin/python" "$folder/venv"
    "$bin/uv" pip install --quiet --python "$folder/venv/bin/python" --require-hashes --requirement requirements-dev.txt
    # shellcheck disable=SC2086  # --editable and its path are two words
    "$bin/uv" pip install --quiet --python "$folder/venv/bin/python" --no-deps --no-build-isolation $what
    judge "$folder/venv/bin/python" "${what##*/}"
done
