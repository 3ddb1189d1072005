"""`POST /orders/ingest`: creates an order at Nacelle from a validated checkout with its payment (`mapper.nacelle`).

Off unless `MAPPER_INGEST_TOKEN` is set. The caller is the merchant, who sends it as a bearer token.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mapper.domain.signature import is_one_of
from mapper.engine.transport import Transport
from mapper.http.endpoint import SECURITY_HEADERS, is_encoded, is_json
from mapper.nacelle.check import NotAnOrder
from mapper.nacelle.database import DatabaseUnavailable
from mapper.nacelle.ingest import Ingested, Ingestion
from mapper.nacelle.journal import Journal
from mapper.nacelle.noms import Noms
from mapper.settings import IngestSettings, Settings

STATUS: Final = {"created": 200, "other_content": 409, "refused": 422, "unknown": 502, "not_sent": 503}
"""The HTTP status for the state of the order."""
SENTENCES: Final = {
    "other_content": "Another order came under this id; nothing was sent.",
    "refused": "Nacelle refused the order; mend it, then send it again.",
    "unknown": "The order may have been created. It is not sent again until a person has said what became of it.",
    "not_sent": "Nothing was created; send the order again later.",
}
RETRY_AFTER_S: Final = 30


def routes(
    ingesting: IngestSettings,
    configured: Settings,
    client: Callable[[], Transport],
    journal: Journal,
    count: Callable[[str], None] = lambda _fate: None,
) -> list[Route]:
    """`client` returns the HTTP client once the service runs. `count` is called with the fate of each order."""

    async def ingest(request: Request) -> Response:
        if not is_one_of(_bearer(request), (ingesting.token,)):
            refused = _problem(401, "A bearer token is needed.")
            refused.headers["www-authenticate"] = "Bearer"
            return refused
        if not is_json(request.headers.get("content-type", "").encode("latin-1")):
            return _problem(415, "The body must be application/json.")
        if is_encoded(request.headers.get("content-encoding", "").encode("latin-1")):
            return _problem(415, "The body must not be compressed.")
        body = await _body(request, configured.max_body_bytes)
        if body is None:
            return _problem(413, f"The body is larger than {configured.max_body_bytes} bytes.")
        noms = Noms(ingesting.base_url, ingesting.authorization, ingesting.space, client())
        try:
            done = await Ingestion(noms, journal, ingesting.default_currency).ingest(body)
        except NotAnOrder as wrong:
            count("no_order")
            faults = [{"pointer": fault.pointer, "message": fault.message} for fault in wrong.faults]
            return _problem(400, "This cannot be ingested as an order; nothing was sent.", faults=faults)
        except DatabaseUnavailable:
            count("no_journal")
            return _later(_problem(503, "The journal cannot be written; nothing was sent."))
        count("again" if done.again and done.state == "created" else done.state)
        return _response(done)

    return [Route("/orders/ingest", ingest, methods=["POST"])]


def _bearer(request: Request) -> bytes:
    """Returns the bearer token; b"" unless there is exactly one `Authorization` header."""
    values = request.headers.getlist("authorization")
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


async def _body(request: Request, max_bytes: int) -> bytes | None:
    """Returns the body; None if it is too large."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                return None
    except ClientDisconnect:
        return b""
    return body


def _response(done: Ingested) -> Response:
    order: dict[str, Any] = {"id": done.key, "state": done.state, "again": done.again}
    if done.state == "created":
        return _json(200, {"order": order | {"answer": _json_or_none(done.answer)}})
    problem = _problem(STATUS[done.state], SENTENCES[done.state], order=order | {"reason": done.reason})
    return _later(problem) if done.state == "not_sent" else problem


def _json_or_none(answer: bytes) -> msgspec.Raw | None:
    """Returns Nacelle's answer unchanged; None if it is not JSON."""
    try:
        msgspec.json.decode(answer)
    except msgspec.DecodeError:
        return None
    return msgspec.Raw(answer)


def _problem(status: int, message: str, **more: Any) -> Response:
    return _json(status, {"error": message, **more})


def _later(response: Response) -> Response:
    response.headers["retry-after"] = str(RETRY_AFTER_S)
    return response


def _json(status: int, value: Any) -> Response:
    return Response(msgspec.json.encode(value), status, headers=SECURITY_HEADERS, media_type="application/json")
