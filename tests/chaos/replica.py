"""`python -m mapper serve` with two changes: shorter leases, and a line in the log for each write of a holder.

    python -m tests.chaos.replica PORT LEASE_S [SABOTAGE]

A lease of 30 s would outlast every pause of a run of a minute. What the lines say cannot be seen in the ledger: under
which fence somebody believed to hold the row that they wrote.
"""

import sys
from collections.abc import Callable
from typing import Any

from mapper import app, cli
from mapper.ledger import Ledger, Moment, Row
from mapper.telemetry import log
from tests.chaos import sabotage


def _log_writes() -> None:
    change = Ledger._change

    async def logged(self: Ledger, row: Row, step: Callable[[Row, Moment], Any]) -> Any:
        facts: dict[str, Any] = {}

        def noted(found: Row, at: Moment) -> Any:
            result, moved = step(found, at)
            facts.update(order=row.key.order, held=row.fence, found=found.fence, version=moved.version)
            return result, moved

        result = await change(self, row, noted)
        log.info("ledger write", extra={"facts": facts})
        return result

    Ledger._change = logged  # type: ignore[method-assign]


def main() -> None:
    port, lease_s, *broken = sys.argv[1:]
    app.LEASE_S = float(lease_s)
    for kind in broken:
        sabotage.KINDS[kind]()
    _log_writes()
    cli.main(["serve", "--port", port])


if __name__ == "__main__":
    main()
