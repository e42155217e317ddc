"""Requests that are another coordinator's, and what coordinators tell each other.

Runs in the event loop between the routes of `app` and `peers`. A request is passed on once: who
gets one that was passed on serves it, whatever it thinks of whose it is.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive

from hexgen_sglang.coordinator import incoming
from hexgen_sglang.coordinator.api_keys import Role
from hexgen_sglang.coordinator.delivery import Delivery
from hexgen_sglang.coordinator.http_errors import as_api_error
from hexgen_sglang.coordinator.incoming import IncomingRequest
from hexgen_sglang.coordinator.peer_client import BEAT_PATH, FORWARDED, PeerLost
from hexgen_sglang.coordinator.peers import Beat
from hexgen_sglang.coordinator.receiving import admitted, read_body
from hexgen_sglang.coordinator.reports import as_json
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.core.strict import convert

BODIES: dict[str, type[msgspec.Struct]] = {f"POST {BEAT_PATH}": Beat}


def routes(coordinator: Coordinator) -> list[Route]:
    """The route over which peers tell; none without peers."""
    peers = coordinator.peers
    if peers is None:
        return []

    async def beat(request: Request) -> Response:
        try:
            admitted(coordinator, request.headers, (Role.OPERATOR,))
            body = incoming.read_object(await read_body(request, coordinator))
            told = peers.heard(convert(body, Beat, "body"))
        except HexgenError as error:
            refusal = as_api_error(error)
            names = {name.decode(): value.decode() for name, value in refusal.headers()}
            return Response(refusal.body(), refusal.status, names)
        return Response(as_json(told), media_type="application/json")

    return [Route(BEAT_PATH, beat, methods=["POST"])]


async def passed_on(
    coordinator: Coordinator,
    checked: IncomingRequest,
    request: Request,
    raw: bytes,
    delivery: Delivery,
    receive: Receive,
) -> bool:
    """Pass a request to the coordinator it belongs to; False: it is to be served here."""
    peers = coordinator.peers
    if peers is None or checked.tag is None:
        return False
    workflow_id, metrics = checked.tag.workflow_id, coordinator.parts.metrics
    while FORWARDED not in request.headers and (peer := peers.owner(workflow_id)) is not None:
        try:
            await peers.client.relay(peer, checked.route, request.headers, raw, delivery, receive)
        except PeerLost as error:
            metrics.forwarded.labels(peer.coordinator_id, "taken_over").inc()
            peers.lose(peer, str(error))
            continue
        metrics.forwarded.labels(peer.coordinator_id, "passed_on").inc()
        return True
    peers.note_served(workflow_id)
    return False


async def asked_elsewhere(coordinator: Coordinator, request: Request) -> Response | None:
    """The answer of the peer that knows the workflow of the path; None: none does."""
    peers = coordinator.peers
    if peers is None or FORWARDED in request.headers:
        return None
    query = request.url.query
    target = request.scope["raw_path"].decode() + (f"?{query}" if query else "")
    body = await read_body(request, coordinator)
    for peer in peers.peers:
        if not peer.is_alive:
            continue
        try:
            status, answer = await peers.client.ask(
                peer, request.method, target, request.headers, body
            )
        except PeerLost as error:
            peers.lose(peer, str(error))
            continue
        if status != 404:
            return Response(answer, status, media_type="application/json")
    return None
