"""`python -m mapper serve` with two changes: shorter leases, and lines in the log for each call and a holder's steps.

    python -m chaos.replica PORT LEASE_S ours|next [SABOTAGE]

A lease of 30 s would outlast every pause. What the lines say cannot be seen in the ledger: under which fence somebody
believed to hold the row whose next state they were allowed to decide. `next`: a version to come, which has been tried
and taken back; it makes the identity of orders by rules of its own.
"""

import hashlib
import sys
import time
from collections.abc import Callable
from typing import Any

from chaos import sabotage
from mapper.commands import cli
from mapper.domain.checkout import Checkout
from mapper.http import app
from mapper.ops.logs import log
from mapper.orders import identity, redeem
from mapper.orders.ledger import Ledger
from mapper.orders.redeem import Job, OrderRedeemer
from mapper.orders.rows import Answer, Key, Moment, Row


def _log_steps() -> None:
    change = Ledger._change

    async def logged(self: Ledger, row: Row, step: Callable[[Row, Moment], Any]) -> Any:
        seen: list[int] = []

        def noted(found: Row, at: Moment) -> Any:
            seen.append(found.fence)
            return step(found, at)

        try:
            return await change(self, row, noted)
        finally:
            # Nothing was seen where the ledger refused a fence of old.
            for fence in seen[-1:]:
                log.info("ledger step", extra={"facts": {"order": row.key.order, "held": row.fence, "found": fence}})

    Ledger._change = logged  # type: ignore[method-assign]


def _log_calls() -> None:
    consume = OrderRedeemer.consume

    async def logged(self: OrderRedeemer, job: Job, deadline: float) -> Answer:
        log.info("asked", extra={"facts": {"order": job.ask.key.order, "at": time.time()}})
        return await consume(self, job, deadline)

    OrderRedeemer.consume = logged  # type: ignore[method-assign]


def _identify_by_other_rules() -> None:
    known = identity.identity
    theirs = identity.VERSION + 1

    def by_rules(order: Checkout, key: Key, costs: tuple[str, ...], customer: str, version: int) -> bytes | None:
        if version != theirs:
            return known(order, key, costs, customer, version)
        return hashlib.sha256(order.source.text).digest()

    redeem.__dict__.update(VERSION=theirs, identity=by_rules)


def main() -> None:
    port, lease_s, version, *broken = sys.argv[1:]
    app.LEASE_S = float(lease_s)
    if version == "next":
        _identify_by_other_rules()
    for kind in broken:
        sabotage.KINDS[kind]()
    _log_steps()
    _log_calls()
    cli.main(["serve", "--port", port])


if __name__ == "__main__":
    main()
