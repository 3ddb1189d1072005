"""HTML pages: `/explain` and the sandbox's start page share one style and one content security policy.

They are rendered on the server, load nothing from other hosts, have no script, and escape all values.
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
    """One row of a cart's table. Amounts are texts; those of `step` and `total` are discounts."""

    kind: Literal["line", "step", "net", "total"]
    name: str
    detail: str = ""
    """The engine's name for it."""
    quantity: str = ""
    price: str = ""
    amount: str = ""
    left: int | None = None
    """The rest of the line's list price, in percent; None for no bar."""


def share(left: int, whole: int) -> int:
    """Returns the share in percent."""
    return round(100 * left / whole) if whole else 0


def _bar(left: int) -> Markup:
    """Draws the rest of a price. It is decoration: the row has the figure as text."""
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
