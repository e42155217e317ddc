"""The HTTP surface: routes to the parts of a coordinator, errors to OpenAI's JSON format."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hexgen_sglang.coordinator import incoming, reports
from hexgen_sglang.coordinator.config import WorkerConfig
from hexgen_sglang.coordinator.delivery import Delivery
from hexgen_sglang.coordinator.http_errors import ApiError, as_api_error
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.core.errors import HexgenError, ProtocolError
from hexgen_sglang.core.strict import convert
from hexgen_sglang.protocol.tag import BudgetMs

_MAX_LISTED_WORKFLOWS = 1_000

Handler = Callable[[Coordinator, Request], Awaitable[Response]]


class NewWorker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /workers`: fields as in `WorkerConfig`."""

    url: str
    worker_id: str | None = None
    hardware: str = ""


class NewBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `PATCH /workflows/{id}`: milliseconds from now; null: best effort."""

    budget_ms: BudgetMs | None


def make_app(coordinator: Coordinator) -> Starlette:
    """The ASGI application of a coordinator."""

    def route(path: str, method: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                return await handler(coordinator, request)
            except HexgenError as error:
                return _refusal(as_api_error(error))

        return Route(path, endpoint, methods=[method])

    generation = [
        Route(path, _Generation(coordinator, path), methods=["POST"]) for path in incoming.ROUTES
    ]
    others = [
        route("/v1/models", "GET", _models),
        route("/health", "GET", _health),
        route("/metrics", "GET", _metrics),
        route("/workers", "GET", _list_workers),
        route("/workers", "POST", _add_worker),
        route("/workers/{worker_id:path}/drain", "POST", _drain_worker),
        route("/workers/{worker_id:path}", "DELETE", _remove_worker),
        route("/workflows", "GET", _list_workflows),
        route("/workflows/{workflow_id:path}/end", "POST", _end_workflow),
        route("/workflows/{workflow_id:path}", "GET", _workflow),
        route("/workflows/{workflow_id:path}", "PATCH", _change_budget),
        route("/workflows/{workflow_id:path}", "DELETE", _cancel_workflow),
    ]
    return Starlette(
        routes=[*generation, *others], exception_handlers={HTTPException: _http_exception}
    )


class _Generation:
    """A route that generates: plain ASGI, since it streams, waits and notices hang-ups."""

    def __init__(self, coordinator: Coordinator, route: str) -> None:
        self._coordinator = coordinator
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        coordinator = self._coordinator
        delivery = Delivery(send)
        request = Request(scope, receive)
        try:
            raw = await _read_body(request, coordinator.config.max_body_bytes)
            checked = incoming.read_request(self._route, raw, request.headers)
            await coordinator.exchanges.answer(checked, request.headers, delivery, receive)
        except ClientDisconnect:
            return
        except HexgenError as error:
            refusal = as_api_error(error)
            coordinator.parts.metrics.refused.labels(str(refusal.status)).inc()
            await delivery.fail(refusal)


async def _models(coordinator: Coordinator, request: Request) -> Response:
    cards = coordinator.parts.directory.models()
    return _json({"object": "list", "data": list(cards.values())})


async def _health(coordinator: Coordinator, request: Request) -> Response:
    parts = coordinator.parts
    status, body = reports.health(
        list(parts.directory.workers.values()),
        num_queued=len(parts.queue),
        is_draining=coordinator.exchanges.is_draining,
        has_link=coordinator.has_link,
    )
    return _json(body, status)


async def _metrics(coordinator: Coordinator, request: Request) -> Response:
    return Response(coordinator.exposition(), media_type=CONTENT_TYPE_LATEST)


async def _list_workers(coordinator: Coordinator, request: Request) -> Response:
    parts = coordinator.parts
    now_s = parts.clock()
    rows = [
        reports.worker_row(worker, parts.estimates, now_s)
        for worker in parts.directory.workers.values()
    ]
    return _json({"workers": rows})


async def _add_worker(coordinator: Coordinator, request: Request) -> Response:
    body = await _read_object(request, coordinator)
    new = convert(body, NewWorker, "body")
    fields = {k: v for k, v in msgspec.structs.asdict(new).items() if v is not None}
    config = convert(fields, WorkerConfig, "body")
    worker = coordinator.parts.directory.add(config, "api")
    return _worker(coordinator, worker.worker_id, 201)


async def _drain_worker(coordinator: Coordinator, request: Request) -> Response:
    worker = coordinator.parts.directory.drain(request.path_params["worker_id"])
    return _worker(coordinator, worker.worker_id)


async def _remove_worker(coordinator: Coordinator, request: Request) -> Response:
    worker = coordinator.parts.directory.remove(request.path_params["worker_id"])
    return _json({"worker_id": worker.worker_id, "num_in_flight": len(worker.in_flight)})


async def _list_workflows(coordinator: Coordinator, request: Request) -> Response:
    limit = _limit(request)
    now_s = coordinator.parts.clock()
    newest = coordinator.parts.tracker.newest(limit)
    return _json({"workflows": [reports.workflow_row(row, now_s) for row in newest]})


async def _workflow(coordinator: Coordinator, request: Request) -> Response:
    return _report(coordinator, _found(coordinator, request))


async def _change_budget(coordinator: Coordinator, request: Request) -> Response:
    workflow = _found(coordinator, request)
    body = await _read_object(request, coordinator)
    change = convert(body, NewBudget, "body")
    if workflow.ended_s is not None:
        raise ApiError(409, f"workflow {workflow.workflow_id!r} has ended", code="workflow_ended")
    await coordinator.set_budget(workflow, change.budget_ms)
    return _report(coordinator, workflow)


async def _end_workflow(coordinator: Coordinator, request: Request) -> Response:
    workflow = _found(coordinator, request)
    coordinator.parts.tracker.end(workflow, coordinator.parts.clock())
    return _report(coordinator, workflow)


async def _cancel_workflow(coordinator: Coordinator, request: Request) -> Response:
    workflow = _found(coordinator, request)
    num_cancelled = await coordinator.cancel(workflow)
    return _json({"workflow_id": workflow.workflow_id, "num_cancelled": num_cancelled})


def _found(coordinator: Coordinator, request: Request) -> Workflow:
    """The workflow that the path names.

    Raises:
        ApiError: 404.
    """
    workflow_id = request.path_params["workflow_id"]
    workflow = coordinator.parts.tracker.get(workflow_id)
    if workflow is None:
        raise ApiError(
            404,
            f"workflow_id={workflow_id[:128]!r}: not known, or forgotten",
            code="workflow_not_found",
            param="workflow_id",
        )
    return workflow


def _limit(request: Request) -> int:
    """`?limit=`: how many workflows are listed.

    Raises:
        ProtocolError: not a number from 1 to the most that are listed.
    """
    text = request.query_params.get("limit", str(_MAX_LISTED_WORKFLOWS))
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_LISTED_WORKFLOWS:
        raise ProtocolError(f"limit={text[:20]!r}: must be 1 to {_MAX_LISTED_WORKFLOWS}")
    return int(text)


def _worker(coordinator: Coordinator, worker_id: str, status: int = 200) -> Response:
    parts = coordinator.parts
    worker = parts.directory.get(worker_id)
    return _json(reports.worker_row(worker, parts.estimates, parts.clock()), status)


def _report(coordinator: Coordinator, workflow: Workflow) -> Response:
    return _json(reports.workflow_report(workflow, coordinator.parts.clock()))


def _json(value: object, status: int = 200) -> Response:
    return Response(reports.as_json(value), status, media_type="application/json")


def _refusal(error: ApiError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, headers)


async def _read_object(request: Request, coordinator: Coordinator) -> dict[str, object]:
    return incoming.read_object(await _read_body(request, coordinator.config.max_body_bytes))


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The body, refused as soon as it is too long.

    Raises:
        ApiError: 413.
        ClientDisconnect: the client went away while sending.
    """
    pieces: list[bytes] = []
    length = 0
    async for piece in request.stream():
        length += len(piece)
        if length > max_bytes:
            raise ApiError(413, f"body: must be at most {max_bytes} bytes", code="body_too_large")
        pieces.append(piece)
    return b"".join(pieces)


async def _http_exception(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the same format as everything else."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.url.path[:200]
    return _refusal(ApiError(status, f"{request.method} {path}: {_REASONS.get(status, 'error')}"))


_REASONS = {404: "no such path", 405: "method not allowed here"}
