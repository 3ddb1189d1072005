"""The real shop (`shop/`): django-oscar behind django-oscar-api in a process of its own, on loopback.

Its books are read from its database, not from its API: what the adapter says of the shop is judged by something else.
"""

import http.client
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import closing, contextmanager
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

KEY = "the-secret-key-of-oscar"
HERE = Path(__file__).parents[1]
_EMPTIED = (
    "order_orderlinediscount", "order_lineprice", "order_line", "order_orderdiscount", "voucher_voucherapplication",
    "analytics_userrecord", "analytics_productrecord", "order_order", "basket_basket_vouchers", "basket_line",
    "basket_basket", "auth_user", "django_session",
)  # fmt: skip


def needed() -> None:
    """Skips, and says why, where the shop is not installed; `OSCAR_SHOP=required` (make shop) makes it a failure."""
    if find_spec("oscarapi") is None:
        why = "django-oscar-api is not installed: NOT tried with a real shop (requirements-shop.txt; make shop)"
        (pytest.fail if os.environ.get("OSCAR_SHOP") == "required" else pytest.skip)(why)


@contextmanager
def running(folder: Path) -> Iterator["Shop"]:
    environment = {**os.environ, "SHOP_DATABASE": str(folder / "shop.db"), "SHOP_API_KEY": KEY}
    python = [sys.executable, "-W", "ignore"]
    subprocess.run([*python, "-m", "shop.stock"], cwd=HERE, env=environment, check=True, timeout=120)
    with closing(socket.create_server(("127.0.0.1", 0))) as listening, (folder / "shop.log").open("wb") as log:
        port = listening.getsockname()[1]
        command = [*python, "-m", "uvicorn", "shop.asgi:app", "--fd", str(listening.fileno()), "--lifespan", "off"]
        server = subprocess.Popen(
            command, cwd=HERE, env=environment, stdout=log, stderr=log, pass_fds=[listening.fileno()]
        )
        try:
            shop = Shop(port, folder / "shop.db")
            shop.wait(server, folder / "shop.log")
            yield shop
        finally:
            server.terminate()
            server.wait(20)


class Shop:
    """An ASGI application, as the conformance tests want it, that passes requests on to the server."""

    def __init__(self, port: int, database: Path) -> None:
        self._port, self._database = port, database
        self.base_url = f"http://127.0.0.1:{port}/api"

    def wait(self, server: "subprocess.Popen[bytes]", log: Path) -> None:
        """The socket listens from the start: the first answer comes once Django is there."""
        until = time.monotonic() + 90
        while time.monotonic() < until and server.poll() is None:
            try:
                if self.ask("GET", "/products/")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"the shop does not start:\n{log.read_text()}")

    def ask(
        self, method: str, path: str, session: str = "", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        sent = headers or {"Authorization": KEY, "Accept": "application/json", "Content-Type": "application/json"}
        sent |= {"Session-Id": session} if session else {}
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request(method, f"/api{path}", body or None, sent)
            reply = connection.getresponse()
            return reply.status, reply.read()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        path = scope["raw_path"].decode() + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        status, answer = self.ask(scope["method"], path, "", body, headers)
        kind = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": kind})
        await send({"type": "http.response.body", "body": answer})

    def unknown_effect(self, reply: Any) -> Any:
        if not isinstance(reply, dict) or "offer_discounts" not in reply:
            return reply
        return {**reply, "offer_discounts": [*reply["offer_discounts"], {"name": "A balloon", "amount": "0.00"}]}

    # -- What it holds, past its API

    def reset(self) -> "Shop":
        """No orders, no baskets, no accounts; products and vouchers stay."""
        with self._opened() as database:
            for table in _EMPTIED:
                database.execute(f"delete from {table}")
            database.execute("update voucher_voucher set num_orders = 0")
        return self

    def stock(self, upc: str, price: Decimal) -> None:
        """Puts a product into the catalogue, or changes its price."""
        with self._opened() as database:
            found = database.execute("select id from catalogue_product where upc = ?", (upc,)).fetchone()
            if found is None:
                self._copied(database, "catalogue_product", upc=upc, slug=upc[:50], title=upc)
                found = database.execute("select id from catalogue_product where upc = ?", (upc,)).fetchone()
                self._copied(database, "partner_stockrecord", product_id=found[0], partner_sku=upc)
            database.execute("update partner_stockrecord set price = ? where product_id = ?", (str(price), found[0]))

    @staticmethod
    def _copied(database: sqlite3.Connection, table: str, **changes: Any) -> None:
        """A row like the first one, with these changes."""
        rows = database.execute(f"select * from {table} order by id limit 1")
        names = [column[0] for column in rows.description]
        row = dict(zip(names, rows.fetchone(), strict=True)) | changes
        del row["id"]
        places = ", ".join("?" * len(row))
        database.execute(f"insert into {table} ({', '.join(row)}) values ({places})", tuple(row.values()))

    def books(self) -> dict[str, Any]:
        with self._opened() as database:
            orders = database.execute(
                "select u.email, o.number, o.total_incl_tax from order_order o join auth_user u on u.id = o.user_id"
            ).fetchall()
            used = database.execute(
                "select v.code, count(*) from voucher_voucherapplication a"
                " join voucher_voucher v on v.id = a.voucher_id group by v.code"
            ).fetchall()
        return {
            "orders": [{"email": email, "number": number, "total": str(total)} for email, number, total in orders],
            "used": dict(used),
        }

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._database, timeout=30)) as database, database:
            database.execute("pragma synchronous = off")
            yield database
