"""The page `/explain`: a checkout before and after, a waterfall for each line, refusals in words, the exchange.

Off unless `MAPPER_EXPLAIN=on`. Whoever asks shows `MAPPER_EXPLAIN_TOKEN` with each checkout, so that neither a cookie
nor another site can ask for somebody. Server-rendered; nothing comes from outside, and there is no script.
"""

import json
from collections.abc import Callable
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mapper.domain.errors import InvalidRequest
from mapper.domain.signature import is_one_of
from mapper.engine.transport import Transport
from mapper.explain import Explanation, explain
from mapper.settings import Settings

HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "a code on an item": {
        "id": "explain-1",
        "currency": "USD",
        "items": [{"sku": "SKU1234", "quantity": 1, "price": "140.00"}],
        "shipping_rate": {"price": "15.00"},
        "promotions": {"coupon_codes": ["XMAS-2021-25"]},
    },
    "a code that does not exist": {
        "id": "explain-2",
        "currency": "USD",
        "items": [{"sku": "SKU1234", "quantity": 2, "price": "19.99"}],
        "promotions": {"coupon_codes": ["NOPE"]},
    },
    "no code": {"id": "explain-3", "currency": "USD", "items": [{"sku": "SKU1234", "quantity": 3, "price": "60.00"}]},
}

_pages = Environment(loader=PackageLoader("mapper.http"), autoescape=select_autoescape())


def _bar(left: int, whole: int) -> Markup:
    """What is left of a price, as a picture; the figure stands beside it."""
    share = round(100 * left / whole) if whole else 0
    return Markup(  # noqa: S704 - numbers
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="gone" width="100" height="8"/><rect class="left" width="{share}" height="8"/></svg>'
    )


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


_pages.filters["pretty"] = _pretty
_pages.globals["bar"] = _bar

Client = Callable[[], Transport]


def routes(configured: Settings, client: Client) -> list[Route]:
    """The page's routes. `client`: the HTTP client towards the engine, once the service runs."""
    page = _Page(configured, client)
    return [Route("/explain", page.show), Route("/explain", page.ask, methods=["POST"]), Route("/explain.css", _style)]


class _Page:
    def __init__(self, configured: Settings, client: Client) -> None:
        self._configured, self._client = configured, client

    async def show(self, request: Request) -> Response:
        example = EXAMPLES.get(request.query_params.get("example", ""), next(iter(EXAMPLES.values())))
        return self._page(_pretty(example))

    async def ask(self, request: Request) -> Response:
        body, token = await _form(request, self._configured.max_body_bytes)
        if not is_one_of(token.encode(), [self._configured.explain_token]):
            return self._page(body, error="This is not the token.", status=403)
        try:
            told = await explain(self._configured, self._client(), body.encode())
        except InvalidRequest as problem:
            place = problem.details["pointer"]
            return self._page(body, error=f"{place}: {problem.message}" if place else problem.message, status=400)
        return self._page(body, told=told)

    def _page(self, body: str, *, told: Explanation | None = None, error: str = "", status: int = 200) -> Response:
        text = _pages.get_template("explain.html").render(
            body=body, told=told, error=error, examples=EXAMPLES, engine=self._configured.adapter.name
        )
        return Response(text, status, HEADERS, "text/html; charset=utf-8")


async def _form(request: Request, limit: int) -> tuple[str, str]:
    """Body and token. What is too large is cut: then it is no JSON, and the page says so."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > 3 * limit:  # a form spells a byte with three
            break
    fields = parse_qs(data.decode("latin-1"), max_num_fields=4)
    return fields.get("body", [""])[0], fields.get("token", [""])[0]


async def _style(request: Request) -> Response:
    text = resources.files("mapper.http").joinpath("templates/page.css").read_text("utf-8")
    return Response(text, headers=HEADERS, media_type="text/css")
