"""The service's OpenAPI 3.1 document, made from the tables that the code uses.

`docs/openapi.json` is its copy in the repository. A test compares the two, so that a review shows each change of the
contract. Bodies of Nacelle are described as far as the mapper reads them; all other members are allowed, and returned
unchanged.
"""

from typing import Any, Final

from mapper import __version__
from mapper.domain import errors, money
from mapper.domain.errors import Operation
from mapper.domain.lines import MAX_LINES, MAX_QUANTITY
from mapper.domain.reasons import Reason
from mapper.domain.signature import SIGNATURE, SPACE

Json = dict[str, Any]

_AMOUNT: Final[Json] = {
    "description": "A decimal amount, with no more significant digits than its currency has.",
    "oneOf": [
        {"type": "string", "pattern": r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,12})?$"},
        {"type": "number", "minimum": 0},
    ],
}
_NAME: Final[Json] = {"type": ["string", "integer", "null"], "minimum": 0}
_META: Final[Json] = {"type": ["object", "null"]}

_DISCOUNT: Final[Json] = {
    "type": "object",
    "required": ["name", "description", "amount", "effect_type", "meta"],
    "properties": {
        "name": {"type": "string"},
        "description": {"type": "string"},
        "amount": {"type": "string"},
        "effect_type": {"type": "string", "description": "The engine's own name for it."},
        "meta": {"type": "object", "description": "The engine's ids; `list_price` on a line's discount."},
    },
}
_PROMOTIONS: Final[Json] = {
    "type": "object",
    "properties": {
        "coupon_codes": {"type": ["array", "null"], "items": {"type": ["string", "null"]}, "maxItems": 100},
        "referral_code": {"type": ["string", "null"]},
        "loyalty_card": {"type": ["string", "null"]},
        "identifiers": {"type": ["array", "null"], "items": {"type": ["string", "null"]}},
        "meta": _META,
    },
}


def _line(price_keys: tuple[str, ...]) -> Json:
    return {
        "type": "object",
        "required": ["quantity"],
        "properties": {
            "sku": _NAME,
            "variant_id": _NAME,
            "product_id": _NAME,
            "quantity": {"type": "integer", "minimum": 0, "maximum": MAX_QUANTITY},
            **dict.fromkeys(price_keys, _AMOUNT),
        },
        "allOf": [{"anyOf": [{"required": ["sku"]}, {"required": ["variant_id"]}, {"required": ["product_id"]}]}],
        "anyOf": [{"required": [key]} for key in price_keys],
    }


def _body(lines_key: str, lines: Json) -> Json:
    return {
        "type": "object",
        "required": [lines_key],
        "properties": {
            "id": _NAME,
            "source_id": _NAME,
            "currency": {"type": ["string", "null"], "enum": [None, *sorted(money.DIGITS)]},
            lines_key: lines,
            "promotions": _PROMOTIONS,
            "promotion": _PROMOTIONS,
        },
    }


def _schemas() -> Json:
    line_a, line_b = _line(("price",)), _line(("price", "price_amount"))
    lines_b = {"type": "array", "items": {"$ref": "#/components/schemas/OrderLine"}, "maxItems": MAX_LINES}
    orders = {
        "type": "array",
        "items": {"type": "object", "required": ["order_items"], "properties": {"order_items": lines_b}},
    }
    return {
        "Line": line_a,
        "OrderLine": line_b,
        "Discount": _DISCOUNT,
        "Checkout": _body(
            "items", {"type": "array", "items": {"$ref": "#/components/schemas/Line"}, "maxItems": MAX_LINES}
        ),
        "Order": _body("order_items", lines_b),
        "MultiOrder": _body("orders", orders),
        "Error": {
            "type": "object",
            "required": ["error", "category", "details"],
            "properties": {
                "error": {"type": "string", "description": "A sentence for people."},
                "category": {"enum": sorted(errors.STATUS)},
                "details": {"type": "object"},
            },
        },
        "RefusedCode": {
            "type": "object",
            "required": ["code", "reason", "engine_reason", "message"],
            "properties": {
                "code": {"type": "string"},
                "reason": {"enum": [reason.value for reason in Reason]},
                "engine_reason": {"type": "string"},
                "message": {"type": "string"},
            },
        },
        "HttpError": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    }


def _content(schema: Json, example: Any = None) -> Json:
    media: Json = {"schema": schema}
    return {"application/json": media if example is None else {**media, "example": example}}


def _envelope(subject: str, *, error: bool) -> Json:
    document = {"type": "object"}
    if not error:
        return {"type": "object", "required": [subject], "properties": {subject: document}}
    return {
        "type": "object",
        "required": [subject, "error"],
        "properties": {
            subject: {"type": "object", "maxProperties": 0},
            "error": {"$ref": "#/components/schemas/Error"},
        },
    }


def _call(operation: Operation, summary: str, bodies: tuple[str, ...], example: Json) -> Json:
    subject = errors.SUBJECT[operation]
    categories: dict[int, list[str]] = {}
    for category, statuses in sorted(errors.STATUS.items()):
        categories.setdefault(statuses[operation == "consume"], []).append(category)
    responses: Json = {
        str(status): {"description": ", ".join(words), "content": _content(_envelope(subject, error=True))}
        for status, words in sorted(categories.items())
    }
    responses |= {
        status: {"description": text, "content": _content({"$ref": "#/components/schemas/HttpError"})}
        for status, text in (
            ("408", "The body did not arrive in time."),
            ("413", "The body is too large."),
            ("415", "The body is no JSON in UTF-8."),
            ("503", "Too many connections, or `MAPPER_OVERLOAD_STATUS`."),
        )
    }
    return {
        "post": {
            "operationId": operation,
            "summary": summary,
            "security": [{"signature": []}],
            "parameters": [
                {
                    "name": SPACE.decode(),
                    "in": "header",
                    "schema": {"type": "string"},
                    "description": "The space; not signed.",
                }
            ],
            "requestBody": {
                "required": True,
                "content": _content({"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in bodies]}, example),
            },
            "responses": {
                "200": {"description": "OK", "content": _content(_envelope(subject, error=False))},
                **responses,
            },
        }
    }


def _cancel() -> Json:
    """The call of the merchant, which is signed with secrets of its own."""
    call = _call("cancel", "Undo the redemption of an order, for good", (), CANCEL_EXAMPLE)
    body = {
        "type": "object",
        "required": ["cancel"],
        "additionalProperties": False,
        "properties": {
            "cancel": {
                "type": "object",
                "required": ["id"],
                "additionalProperties": False,
                "properties": {"id": {"type": ["string", "integer"], "minimum": 0}},
            }
        },
    }
    call["post"]["security"] = [{"cancel": []}]
    call["post"]["requestBody"] = {"required": True, "content": _content(body, CANCEL_EXAMPLE)}
    refused = {"content": _content(_envelope("order", error=True))}
    call["post"]["responses"] |= {
        "404": {"description": "There is no such order.", **refused},
        "409": {"description": "What became of the order is not known yet.", **refused},
    }
    return call


CANCEL_EXAMPLE: Final[Json] = {"cancel": {"id": "1001"}}


def _plain(summary: str, media: str = "application/json", **more: str) -> Json:
    responses = {"200": {"description": "OK", "content": {media: {}}}}
    responses |= {status: {"description": text, "content": {media: {}}} for status, text in more.items()}
    return {"get": {"summary": summary, "responses": responses}}


EXAMPLE: Final[Json] = {
    "id": "1001",
    "currency": "USD",
    "items": [{"sku": "SKU1234", "quantity": 1, "price": "140.00"}],
    "promotions": {"coupon_codes": ["XMAS-2021-25"]},
}
ORDER_EXAMPLE: Final[Json] = {
    "id": "1001",
    "currency": "USD",
    "order_items": [{"sku": "SKU1234", "quantity": 1, "price": "140.00"}],
    "promotions": {"coupon_codes": ["XMAS-2021-25"]},
}


_INGEST: Final[Json] = {
    "post": {
        "operationId": "ingest",
        "summary": "A validated checkout with its payment becomes an order at Nacelle; only with `MAPPER_INGEST_TOKEN`",
        "security": [{"ingest": []}],
        "requestBody": {"required": True, "content": _content({"type": "object"})},
        "responses": {
            "200": {
                "description": "It is created, now or before (`again`); `answer` is Nacelle's.",
                "content": _content(
                    {"type": "object", "required": ["order"], "properties": {"order": {"type": "object"}}}
                ),
            },
            **{
                status: {"description": text, "content": _content({"$ref": "#/components/schemas/HttpError"})}
                for status, text in (
                    ("400", "It cannot be an order: `faults` has all that is wrong, each with its `pointer`."),
                    ("401", "No bearer token, or a wrong one."),
                    ("408", "The body did not arrive in time."),
                    ("409", "Another order came under this id."),
                    ("413", "The body is too large."),
                    ("415", "The body is no JSON."),
                    ("422", "Nacelle refused it."),
                    ("502", "It may have been created; a person has to say."),
                    ("503", "Nothing was created; send it again later."),
                )
            },
        },
    }
}


def document() -> Json:
    """Returns the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The promotions mapper",
            "version": __version__,
            "description": "What Nacelle's order orchestration calls while a shopper checks out, and after payment.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            "/promotions/validate": _call(
                "validate", "The checkout, with what its promotions earn", ("Checkout", "Order", "MultiOrder"), EXAMPLE
            ),
            "/promotions/consume": _call(
                "consume", "The order, its promotions redeemed for good, once", ("Order", "MultiOrder"), ORDER_EXAMPLE
            ),
            "/promotions/cancel": _cancel(),
            "/orders/ingest": _INGEST,
            "/livez": _plain("200 while the process runs"),
            "/readyz": _plain(
                "Which calls are served",
                **{"503": "It drains, or serves nothing; with `?for=consume`: consume is not served."},
            ),
            "/version": _plain("Version and engine"),
            "/metrics": _plain("The metrics, in Prometheus' text format", "text/plain"),
            "/openapi.json": _plain("This document"),
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "cancel": {
                    "type": "apiKey",
                    "in": "header",
                    "name": SIGNATURE.decode(),
                    "description": "The same signature, with a secret of `MAPPER_CANCEL_SECRETS`.",
                },
                "ingest": {"type": "http", "scheme": "bearer", "description": "`MAPPER_INGEST_TOKEN`."},
                "signature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": SIGNATURE.decode(),
                    "description": "HMAC-SHA256 over the body's bytes, in hex, with or without the prefix `sha256=`.",
                },
            },
        },
    }
