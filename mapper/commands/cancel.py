"""`promotions-mapper cancel ORDER`: takes the redemption of an order back in the engine, for good."""

import argparse
import asyncio
import os
import sys
import time

from mapper import settings
from mapper.domain.errors import Problem
from mapper.engine import clients
from mapper.engine.conversation import Engine
from mapper.orders.ledger import open_ledger
from mapper.orders.redeem import OrderRedeemer
from mapper.orders.rows import Key
from mapper.settings import Settings


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the program's."""
    parser = commands.add_parser("cancel", help="take the redemption of an order back in the engine, for good")
    parser.add_argument("order", metavar="ORDER", help="the order's id")
    parser.add_argument("--space", default="", help="the Nacelle space, where several are served")
    parser.set_defaults(run=_run)


def _run(chosen: argparse.Namespace) -> int:
    configured = settings.load(os.environ)
    spaces = configured.credentials.spaces
    if configured.credentials.tells_spaces_apart and chosen.space not in spaces:
        print(f"Name the space: --space, one of {', '.join(sorted(spaces))}.", file=sys.stderr)
        return 2
    return asyncio.run(_cancel(configured, chosen))


async def _cancel(configured: Settings, chosen: argparse.Namespace) -> int:
    space = chosen.space if configured.credentials.tells_spaces_apart else ""
    client = clients.create(configured.http_client, connections=1)
    try:
        ledger = await open_ledger(configured.ledger_url, quarantine_s=configured.quarantine_s, create=False)
        try:
            redeemer = OrderRedeemer(configured, Engine(client, configured.adapter.accounts), ledger, time.monotonic)
            key = Key(space, configured.adapter.name, chosen.order.strip())
            await redeemer.cancel(key, time.monotonic() + configured.consume_deadline_s)
            await redeemer.drain(configured.consume_deadline_s)
        finally:
            await ledger.close()
    except Problem as problem:
        print(f"{problem.message} Reason: {problem.reason}.", file=sys.stderr)
        return 1
    finally:
        await client.aclose()
    print("Cancelled: nothing of this order stands in the engine, and its id is refused from now on.")
    return 0
