"""The page `/explain`: the price of each line step by step, the refused codes, and the exchange with the engine.

Off unless `MAPPER_EXPLAIN=on`. The form sends `MAPPER_EXPLAIN_TOKEN` with each checkout. There is no cookie, so that
another site cannot make requests in somebody's name.
"""

import json
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mapper import pages
from mapper.domain.errors import InvalidRequest
from mapper.domain.signature import is_one_of
from mapper.engine.transport import Transport
from mapper.explain import Explanation, explain, rows
from mapper.settings import Settings

STYLE: Final = "/explain.css"
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

Client = Callable[[], Transport]


def routes(configured: Settings, client: Client) -> list[Route]:
    """Returns the page's routes. `client` returns the HTTP client towards the engine once the service runs."""
    page = _Page(configured, client)
    return [Route("/explain", page.show), Route("/explain", page.ask, methods=["POST"]), Route(STYLE, pages.style)]


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
            explanation = await explain(self._configured, self._client(), body.encode())
        except InvalidRequest as problem:
            place = problem.details["pointer"]
            return self._page(body, error=f"{place}: {problem.message}" if place else problem.message, status=400)
        return self._page(body, explanation=explanation)

    def _page(
        self, body: str, *, explanation: Explanation | None = None, error: str = "", status: int = 200
    ) -> Response:
        return pages.page(
            "explain.html",
            status,
            css=STYLE,
            body=body,
            explanation=explanation,
            rows=rows(explanation) if explanation else (),
            error=error,
            examples=EXAMPLES,
            engine=self._configured.adapter.name,
        )


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


async def _form(request: Request, limit: int) -> tuple[str, str]:
    """Returns body and token. A body that is too large is cut; the page then reports that it is not JSON."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > 3 * limit:  # a form may encode a byte as three
            break
    fields = parse_qs(data.decode("latin-1"), max_num_fields=4)
    return fields.get("body", [""])[0], fields.get("token", [""])[0]
