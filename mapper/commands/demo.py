"""The whole thing at work on this machine, without an account: sandbox and service started, Nacelle's example sent.

A merchant sees what becomes of the prices, an integrator sees the very requests, and the demo checks itself: it exits
with 1 if any answer is not what it should be.
"""

import json
import os
import secrets
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from mapper import settings
from mapper.adapter import SANDBOXES, known
from mapper.domain import signature
from mapper.http import app
from mapper.ops import logs
from mapper.sandbox import host as sandbox

# The checkout of Nacelle's page on the promotions mapper, with the shipping that its answer is about.
CHECKOUT: dict[str, Any] = {
    "items": [
        {
            "product_id": "my-product-id",
            "variant_id": "my-variant-id",
            "sku": "SKU1234",
            "quantity": 1,
            "price": "140.00",
        }
    ],
    "shipping_rate": {"name": "Standard", "price": "15.00"},
    "promotions": {
        "coupon_codes": ["XMAS-2021-25"],
        "referral_code": "",
        "loyalty_card": "",
        "identifiers": ["91.11.156.141"],
        "meta": {},
    },
}
EXPIRED_CODE = "EXPIRED-10"

# How the service is told about each engine's sandbox; `{url}` is where that listens.
ENGINES: dict[str, dict[str, str]] = {
    "talon_one": {
        "TALON_ONE_BASE_URL": "{url}/talon_one",
        "TALON_ONE_API_KEY": "sandbox-key",
        "TALON_ONE_ADDITIONAL_COSTS": "shipping=/shipping_rate/price",
    },
    "voucherify": {
        "VOUCHERIFY_BASE_URL": "{url}/voucherify",
        "VOUCHERIFY_APP_ID": "sandbox-id",
        "VOUCHERIFY_APP_TOKEN": "sandbox-token",
        "VOUCHERIFY_PROMOTIONS": "qualify",
    },
}


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Failed(Exception):
    """An answer that is not what it should be."""


def run(*, keep: bool) -> int:
    """Exit code 0 if everything went as it should."""
    screen = Screen()
    secret = secrets.token_hex(16)
    with ExitStack() as running:
        running.callback(logs.log.setLevel, logs.log.level)
        logs.log.setLevel("CRITICAL")  # the demo speaks for itself
        folder = running.enter_context(tempfile.TemporaryDirectory())
        sandbox_url = running.enter_context(sandbox.running(sandbox.create()))
        screen.say(f"Sandbox on {sandbox_url}: the engines, emulated. Nothing leaves this machine.")
        services: dict[str, str] = {}
        for engine in [name for name in ENGINES if name in known(SANDBOXES)]:
            environment = {"MAPPER_ENGINE": engine, "NACELLE_SIGNING_SECRETS": secret}
            environment["MAPPER_LEDGER_URL"] = f"sqlite:///{folder}/{engine}.db"
            environment |= {name: value.format(url=sandbox_url) for name, value in ENGINES[engine].items()}
            services[engine] = running.enter_context(sandbox.running(app.create(settings.load(environment))))
            screen.say(f"Service on {services[engine]}, in front of {engine}.")
        try:
            results = {engine: _story(screen, engine, url, secret) for engine, url in services.items()}
            _compare(screen, results)
            _expect_redeemed_once(screen, sandbox_url, list(services))
        except Failed as failure:
            screen.say(f"\nThis is not as it should be: {failure}")
            return 1
        screen.say("\nAll as it should be.")
        if keep:
            _wait(screen, next(iter(services.values())), secret)
    return 0


def _story(screen: "Screen", engine: str, url: str, secret: str) -> dict[str, Any]:
    """Validate, the same again, a refused code, consume, the same again. Returns the validated checkout."""
    screen.title(f"{engine}: a checkout with the code {CHECKOUT['promotions']['coupon_codes'][0]}")
    validated = _post(url, "validate", CHECKOUT, secret)
    _expect(validated.status == 200, f"validate answers {validated.status}: {validated.body.decode()}")
    checkout: dict[str, Any] = validated.json["checkout"]
    screen.table(_before_and_after(CHECKOUT, checkout), changed=(1, 2))
    prices = (checkout["items"][0]["price"], checkout["items"][0]["total_discount"], checkout["total_discount"])
    _expect(prices == ("105.00", "35.00", "50.00"), f"prices are {prices}")

    again = _post(url, "validate", checkout, secret)
    _expect(_without_receipt(again.json["checkout"]) == _without_receipt(checkout), "another answer to the same cart")
    screen.done("Validated again, with the reduced prices in it: the same answer. Nothing is discounted twice.")

    refused = _post(
        url, "validate", {**CHECKOUT, "promotions": {"coupon_codes": [EXPIRED_CODE]}, "id": "refused"}, secret
    )
    _expect(refused.status == 422, f"a refused code answers {refused.status}")
    screen.done(f"The code {EXPIRED_CODE} is refused with 422, and says why:")
    screen.json(refused.json["error"]["details"]["codes"][0])

    order = _order(checkout)
    consumed = _post(url, "consume", order, secret)
    _expect(consumed.status == 200, f"consume answers {consumed.status}: {consumed.body.decode()}")
    screen.done("The shopper paid; the order was sent to consume: the promotions are redeemed for good.")
    repeated = _post(url, "consume", order, secret)
    _expect(repeated == consumed, f"the order sent twice answers {repeated.status}: {repeated.body.decode()}")
    screen.done("The same order sent again: the same answer, byte for byte, and nothing redeemed a second time.")
    return checkout


def _compare(screen: "Screen", results: dict[str, dict[str, Any]]) -> None:
    """The engines side by side: to the shopper they are equal."""
    if len(results) < 2:
        return
    screen.title("Side by side")
    columns = {engine: _before_and_after(CHECKOUT, checkout)[1:] for engine, checkout in results.items()}
    rows: list[tuple[str, ...]] = [("", *columns)]
    rows += [(cells[0][0], *(cell[2] for cell in cells)) for cells in zip(*columns.values(), strict=True)]
    screen.table(rows)
    _expect(all(len(set(row[1:])) == 1 for row in rows[1:]), "the engines do not agree")
    screen.done("To the shopper the engines are equal.")


def _expect_redeemed_once(screen: "Screen", sandbox_url: str, engines: list[str]) -> None:
    """Asks the sandbox's own books."""
    code = CHECKOUT["promotions"]["coupon_codes"][0]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{sandbox_url}/_sandbox/books", timeout=30) as response:
        books = json.load(response)
    for engine in engines:
        count = books[engine]["codes"].get(code, 0)
        _expect(count == 1, f"{engine}'s books show the code redeemed {count} times")
    screen.done("Each engine's books show the code redeemed once.")


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise Failed(otherwise)


def _order(checkout: dict[str, Any]) -> dict[str, Any]:
    """The order that a shop makes of a validated checkout, in the names of Nacelle's consume call."""
    lines = [
        {
            **{key: item[key] for key in ("product_id", "variant_id", "sku", "quantity")},
            "price_amount": item["price"],
            "discounts_amount": item["total_discount"],
            "applied_discounts": item["discounts"],
        }
        for item in checkout["items"]
    ]
    return {
        "order_items": lines,
        "discounts": checkout["total_discount"],
        "applied_discounts": checkout["discounts"],
        "shipping_rate": checkout["shipping_rate"],
        "promotions": checkout["promotions"],
    }


def _without_receipt(checkout: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(checkout))
    copy["promotions"]["meta"]["mapper"].pop("receipt")
    return copy


def _before_and_after(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, ...]]:
    """Before and after side by side, line by line: what, before, after, off, why."""
    rows: list[tuple[str, ...]] = [("", "before", "after", "discount", "why")]
    for old, new in zip(before["items"], after["items"], strict=True):
        what = f"{new['quantity']} x {new['sku']}"
        rows.append((what, old["price"], new["price"], new["total_discount"], _why(new["discounts"])))
    off = sum((_cents(entry["amount"]) for entry in after["discounts"]), 0)
    shipping = _cents(after["shipping_rate"]["price"])
    rows.append(("shipping", _text(shipping), _text(shipping - off), _text(off), _why(after["discounts"])))
    total = sum(_cents(item["price"]) * item["quantity"] for item in before["items"]) + shipping
    everything = _cents(after["total_discount"])
    rows.append(("to pay", _text(total), _text(total - everything), _text(everything), ""))
    return rows


def _why(discounts: list[dict[str, Any]]) -> str:
    return "; ".join(
        entry["name"] + (f" ({entry['meta']['code']})" if entry["meta"].get("code") else "") for entry in discounts
    )


def _cents(text: str) -> int:
    whole, _, fraction = text.partition(".")
    return int(whole + fraction.ljust(2, "0"))


def _text(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def _post(url: str, operation: str, body: dict[str, Any], secret: str) -> Answer:
    data = json.dumps(body, separators=(",", ":")).encode()
    headers = {
        "content-type": "application/json",
        signature.SIGNATURE.decode(): signature.sign(data, secret.encode()),
    }
    request = urllib.request.Request(f"{url}/promotions/{operation}", data, headers)  # noqa: S310 - our own loopback address
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return Answer(response.status, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read())


def _wait(screen: "Screen", url: str, secret: str) -> None:
    screen.say(f"\nBoth keep running until Ctrl-C. The signing secret is {secret}. To try it yourself:\n")
    screen.say(f"  echo '{json.dumps(CHECKOUT)}' > checkout.json")
    screen.say(f"  export NACELLE_SIGNING_SECRETS={secret}")
    screen.say('  curl -H "$(promotions-mapper sign checkout.json)" -H "content-type: application/json" \\')
    screen.say(f"    --data-binary @checkout.json {url}/promotions/validate")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        screen.say("")


class Screen:
    """Writes for people: colour on a terminal, plain text elsewhere."""

    def __init__(self) -> None:
        self.colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def title(self, text: str) -> None:
        self.say("\n" + self._in("1", text))

    def done(self, text: str) -> None:
        self.say(f"  {self._in('32', 'ok')}  {text}")

    def json(self, value: Any) -> None:
        for line in json.dumps(value, indent=2).splitlines():
            self.say(f"      {self._in('2', line)}")

    def table(self, rows: list[tuple[str, ...]], changed: tuple[int, int] | None = None) -> None:
        """The first column and a last one of words to the left, numbers to the right. `changed`: before and after."""
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        rule = "      " + "-" * (sum(widths) + 3 * (len(widths) - 1))
        self.say("")
        for number, row in enumerate(rows):
            cells = [
                cell.ljust(width) if column in (0, 4) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            if changed and number and row[changed[0]] != row[changed[1]]:
                cells[changed[1]] = self._in("1;32", cells[changed[1]])
            self.say("      " + "   ".join(cells).rstrip())
            if number in (0, len(rows) - 2):
                self.say(rule)
        self.say("")

    def _in(self, style: str, text: str) -> str:
        return f"\033[{style}m{text}\033[0m" if self.colour and text else text
