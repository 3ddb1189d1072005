"""Pages for people: `/explain`, and the sandbox's start page. One style, one policy for the browser.

Server-rendered. Nothing comes from outside, there is no script, and everything that is put in is escaped.
"""

import json
from importlib import resources
from typing import Any, Final, Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Row(NamedTuple):
    """One row of a cart's table, from list price to net price. Amounts are texts; those of steps and total come off."""

    kind: Literal["line", "step", "net", "total"]
    name: str
    detail: str = ""
    """What the engine calls it."""
    quantity: str = ""
    price: str = ""
    amount: str = ""
    left: int | None = None
    """What is left of the line's list price, in percent; None: nothing to be drawn."""


def share(left: int, whole: int) -> int:
    """In percent."""
    return round(100 * left / whole) if whole else 0


def _bar(left: int) -> Markup:
    """What is left of a price, as a picture; the figure stands beside it."""
    return Markup(  # noqa: S704 - a number
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="gone" width="100" height="8"/><rect class="left" width="{left:d}" height="8"/></svg>'
    )


_templates = Environment(
    loader=PackageLoader("mapper.pages"), autoescape=select_autoescape(), undefined=StrictUndefined
)
_templates.globals["bar"] = _bar
_templates.filters["pretty"] = lambda value: (
    value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
)


def page(name: str, status: int = 200, **values: Any) -> Response:
    text = _templates.get_template(name).render(**values)
    return Response(text, status, HEADERS, "text/html; charset=utf-8")


async def style(_request: Request) -> Response:
    text = resources.files("mapper.pages").joinpath("templates/page.css").read_text("utf-8")
    return Response(text, headers=HEADERS, media_type="text/css")
