"""`python -m mapper serve` with shorter leases, and a log line for each call and each step of a holder.

    python -m chaos.replica PORT LEASE_S ours|next [SABOTAGE]

A lease of 30 s would outlast every pause. The ledger does not show what the lines do: the fence under which a process
decided the next state of a row. `next`: a later version that was tried and rolled back; it has its own rules of
identity.
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
            # Empty if the ledger refused an old fence.
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
