"""`promotions-mapper cancel ORDER`: undoes the redemption of an order in the engine, for good."""

import argparse
import asyncio
import os
import time

from mapper import settings
from mapper.commands import Commands, add_command, fail, utf8
from mapper.domain.errors import Problem
from mapper.engine import clients
from mapper.engine.conversation import Engine
from mapper.engine.promotion_engine import PromotionEngine
from mapper.orders.ledger import open_ledger
from mapper.orders.redeem import OrderRedeemer
from mapper.orders.rows import Key
from mapper.settings import Settings


def add(commands: Commands) -> None:
    parser = add_command(commands, "cancel", "undo the redemption of an order in the engine, for good")
    parser.add_argument("order", metavar="ORDER", type=utf8, help="the order's id")
    parser.add_argument(
        "--space", type=utf8, help="the Nacelle space, if several are served; '' for an order from before that"
    )
    parser.set_defaults(run=_run)


def _run(chosen: argparse.Namespace) -> int:
    configured = settings.load(os.environ)
    spaces = configured.credentials.spaces
    needed = chosen.space is None and configured.credentials.tells_spaces_apart
    if needed or (chosen.space and spaces and chosen.space not in spaces):
        return fail(f"Name the space with --space, one of {', '.join(sorted(spaces))}.", 2)
    return asyncio.run(_cancel(configured, chosen))


async def _cancel(configured: Settings, chosen: argparse.Namespace) -> int:
    space = chosen.space or "" if configured.credentials.tells_spaces_apart else ""
    client = clients.create(configured.http_client, connections=1)
    try:
        ledger = await open_ledger(
            configured.ledger_url,
            quarantine_s=configured.quarantine_s,
            lease_s=2 * configured.consume_deadline_s,
            create=False,
        )
        try:
            engine = PromotionEngine(configured.adapter, Engine(client, configured.adapter.accounts))
            redeemer = OrderRedeemer(configured, engine, ledger, time.monotonic)
            key = Key(space, configured.adapter.name, chosen.order.strip())
            await redeemer.cancel(key, time.monotonic() + configured.consume_deadline_s)
            await redeemer.drain(configured.consume_deadline_s)
        finally:
            await ledger.close()
    except Problem as problem:
        return fail(f"{problem.message} Reason: {problem.reason}.")
    finally:
        await client.aclose()
    print("The order is cancelled: nothing of it is redeemed in the engine, and its id is refused from now on.")
    return 0
