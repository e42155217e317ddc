"""The HTTP surface: routes to the parts of a coordinator, errors to OpenAI's JSON format."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from hexgen_sglang.coordinator import incoming, openapi, peer_routes, placement_routes, reports
from hexgen_sglang.coordinator.access import Caller
from hexgen_sglang.coordinator.api_keys import Role
from hexgen_sglang.coordinator.config import WORKER_URL_PATTERN, WorkerConfig
from hexgen_sglang.coordinator.delivery import Delivery
from hexgen_sglang.coordinator.explain import explanation
from hexgen_sglang.coordinator.http_errors import ApiError, as_api_error
from hexgen_sglang.coordinator.receiving import admitted, read_body
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.core.errors import HexgenError, ProtocolError
from hexgen_sglang.core.strict import convert
from hexgen_sglang.protocol.tag import BudgetMs, Name

Handler = Callable[[Coordinator, Request], Awaitable[Response]]

# Which roles a route is for; none: whoever reaches the address.
EVERYBODY: tuple[Role, ...] = ()
OPERATOR = (Role.OPERATOR,)
ANY_KEY = tuple(Role)

WORKFLOW_NOT_FOUND = "workflow_not_found"


class NewWorker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /workers`: fields as in `WorkerConfig`."""

    url: Annotated[
        str, msgspec.Meta(max_length=512, extra_json_schema={"pattern": WORKER_URL_PATTERN})
    ]
    worker_id: Name | None = None
    hardware: Annotated[str, msgspec.Meta(max_length=64)] = ""


class NewBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `PATCH /workflows/{id}`: milliseconds from now; null: best effort."""

    budget_ms: BudgetMs | None


def make_app(coordinator: Coordinator, more_routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The ASGI application of a coordinator; `more_routes` look after their callers themselves."""

    def route(path: str, method: str, handler: Handler, roles: tuple[Role, ...]) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                if roles:
                    request.state.caller = admitted(coordinator, request.headers, roles)
                return await handler(coordinator, request)
            except HexgenError as error:
                refusal = as_api_error(error)
                if refusal.code == WORKFLOW_NOT_FOUND:
                    answer = await peer_routes.asked_elsewhere(coordinator, request)
                    if answer is not None:
                        return answer
                if refusal.status in (401, 403):
                    coordinator.parts.metrics.refused.labels(str(refusal.status)).inc()
                return _refusal(refusal)

        return Route(path, endpoint, methods=[method])

    generation = [
        Route(path, _Generation(coordinator, path), methods=["POST"]) for path in incoming.ROUTES
    ]
    others = [
        route("/v1/models", "GET", _models, ANY_KEY),
        route("/health", "GET", _health, EVERYBODY),
        route("/openapi.json", "GET", _openapi, EVERYBODY),
        route(
            "/metrics", "GET", _metrics, EVERYBODY if coordinator.config.open_metrics else OPERATOR
        ),
        route("/tuning", "GET", _tuning, OPERATOR),
        route("/workers", "GET", _list_workers, OPERATOR),
        route("/workers", "POST", _add_worker, OPERATOR),
        route("/workers/{worker_id:path}/drain", "POST", _drain_worker, OPERATOR),
        route("/workers/{worker_id:path}", "DELETE", _remove_worker, OPERATOR),
        route("/workflows", "GET", _list_workflows, ANY_KEY),
        route("/workflows/{workflow_id:path}/end", "POST", _end_workflow, ANY_KEY),
        route("/workflows/{workflow_id:path}/explain", "GET", _explain_workflow, ANY_KEY),
        route("/workflows/{workflow_id:path}", "GET", _workflow, ANY_KEY),
        route("/workflows/{workflow_id:path}", "PATCH", _change_budget, ANY_KEY),
        route("/workflows/{workflow_id:path}", "DELETE", _cancel_workflow, ANY_KEY),
    ]
    return Starlette(
        routes=[
            *generation,
            *placement_routes.routes(coordinator),
            *peer_routes.routes(coordinator),
            *others,
            *more_routes,
        ],
        exception_handlers={HTTPException: _http_exception},
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
        tracing = coordinator.tracing
        trace = None if tracing is None else tracing.request(self._route, request.headers)
        try:
            caller = admitted(coordinator, request.headers, (Role.CLIENT,))
            raw = await read_body(request, coordinator)
            checked = incoming.read_request(self._route, raw, request.headers, caller)
            if await peer_routes.passed_on(coordinator, checked, request, raw, delivery, receive):
                return
            await coordinator.exchanges.answer(checked, request.headers, delivery, receive, trace)
        except ClientDisconnect:
            return
        except HexgenError as error:
            refusal = as_api_error(error)
            coordinator.parts.metrics.refused.labels(str(refusal.status)).inc()
            if trace is not None:
                trace.refused(refusal)
            await delivery.fail(refusal)


async def _models(coordinator: Coordinator, request: Request) -> Response:
    cards = coordinator.parts.directory.models()
    return _json({"object": "list", "data": list(cards.values())})


async def _health(coordinator: Coordinator, request: Request) -> Response:
    status, body = coordinator.health()
    return _json(body, status)


async def _openapi(coordinator: Coordinator, request: Request) -> Response:
    bodies: dict[str, type[msgspec.Struct]] = {
        "POST /workers": NewWorker,
        "PATCH /workflows/{workflow_id}": NewBudget,
    }
    if coordinator.config.direct:
        bodies |= placement_routes.BODIES
    if coordinator.peers is not None:
        bodies |= peer_routes.BODIES
    needs_key = coordinator.access.ring is not None
    has_open_metrics = coordinator.config.open_metrics
    return _json(openapi.document(bodies, needs_key=needs_key, has_open_metrics=has_open_metrics))


async def _metrics(coordinator: Coordinator, request: Request) -> Response:
    return Response(coordinator.exposition(), media_type=CONTENT_TYPE_LATEST)


async def _tuning(coordinator: Coordinator, request: Request) -> Response:
    return _json(coordinator.tuning.report())


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
    caller = _caller(request)
    # The tracker is bounded; it sorts everything whatever the limit.
    newest = coordinator.parts.tracker.newest(sys.maxsize)
    seen = [row for row in newest if caller.sees(row.tenant)][:limit]
    return _json({"workflows": [reports.workflow_row(row, now_s, caller) for row in seen]})


async def _workflow(coordinator: Coordinator, request: Request) -> Response:
    return _report(coordinator, request, _found(coordinator, request))


async def _explain_workflow(coordinator: Coordinator, request: Request) -> Response:
    workflow = _found(coordinator, request)
    parts = coordinator.parts
    terms = parts.dispatcher.price_terms
    return _json(explanation(workflow, terms, parts.clock(), _caller(request)))


async def _change_budget(coordinator: Coordinator, request: Request) -> Response:
    workflow = _found(coordinator, request)
    body = await _read_object(request, coordinator)
    change = convert(body, NewBudget, "body")
    if workflow.ended_s is not None:
        raise ApiError(409, f"workflow {workflow.workflow_id!r} has ended", code="workflow_ended")
    await coordinator.set_budget(workflow, change.budget_ms)
    return _report(coordinator, request, workflow)


async def _end_workflow(coordinator: Coordinator, request: Request) -> Response:
    workflow = _found(coordinator, request)
    coordinator.parts.tracker.end(workflow, coordinator.parts.clock())
    return _report(coordinator, request, workflow)


async def _cancel_workflow(coordinator: Coordinator, request: Request) -> Response:
    workflow = _found(coordinator, request)
    num_cancelled = await coordinator.cancel(workflow)
    shown_id = _caller(request).shown_id(workflow.workflow_id)
    return _json({"workflow_id": shown_id, "num_cancelled": num_cancelled})


def _found(coordinator: Coordinator, request: Request) -> Workflow:
    """The workflow that the path names, if it is the caller's to see.

    Raises:
        ApiError: 404, also for one of another tenant: what exists there is not told.
    """
    workflow_id, caller = request.path_params["workflow_id"], _caller(request)
    for entered_id in caller.entered_ids(workflow_id):
        workflow = coordinator.parts.tracker.get(entered_id)
        if workflow is not None and caller.sees(workflow.tenant):
            return workflow
    raise ApiError(
        404,
        f"workflow_id={workflow_id[:128]!r}: not known, or forgotten",
        code=WORKFLOW_NOT_FOUND,
        param="workflow_id",
    )


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def _limit(request: Request) -> int:
    """`?limit=`: how many workflows are listed.

    Raises:
        ProtocolError: not a number from 1 to the most that are listed.
    """
    most = reports.MAX_LISTED_WORKFLOWS
    text = request.query_params.get("limit", str(most))
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise ProtocolError(f"limit={text[:20]!r}: must be 1 to {most}")
    return int(text)


def _worker(coordinator: Coordinator, worker_id: str, status: int = 200) -> Response:
    parts = coordinator.parts
    worker = parts.directory.get(worker_id)
    return _json(reports.worker_row(worker, parts.estimates, parts.clock()), status)


def _report(coordinator: Coordinator, request: Request, workflow: Workflow) -> Response:
    now_s = coordinator.parts.clock()
    return _json(reports.workflow_report(workflow, now_s, _caller(request)))


def _json(value: object, status: int = 200) -> Response:
    return Response(reports.as_json(value), status, media_type="application/json")


def _refusal(error: ApiError, more_headers: Mapping[str, str] | None = None) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, {**headers, **(more_headers or {})})


async def _read_object(request: Request, coordinator: Coordinator) -> dict[str, object]:
    return incoming.read_object(await read_body(request, coordinator))


async def _http_exception(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the format of everything else; 405 says what is allowed."""
    assert isinstance(error, HTTPException)
    status, path = error.status_code, request.url.path[:200]
    told = ApiError(status, f"{request.method} {path}: {_REASONS.get(status, 'error')}")
    return _refusal(told, {"allow": _allowed(request)} if status == 405 else None)


def _allowed(request: Request) -> str:
    """The methods of the path; each has a route of its own, and Starlette names the first one's."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    path = next(route.path for route in routes if route.matches(request.scope)[0] != Match.NONE)
    methods = set().union(*(route.methods or () for route in routes if route.path == path))
    return ", ".join(sorted(methods))


_REASONS = {404: "no such path", 405: "method not allowed here"}
