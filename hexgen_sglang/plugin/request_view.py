"""SGLang's `Req` as the policies see it: a `RequestView`, made once, when the request comes.

Runs in the scheduler process. All instants are `time.perf_counter()`, as in SGLang's own
timings. The instant of arrival is written into the request by the rank that receives it and
travels with it to the other ranks: each rank sorts the same queue, and must come to the same
order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.protocol.tag import BODY_FIELD, EngineTag, engine_tag

logger = logging.getLogger(__name__)

ARRIVAL_FIELD = "hexgen_arrival_s"


def requests_in(received: Any) -> tuple[Any, ...]:
    """The requests for the model in one message from SGLang's front; () for control messages."""
    if getattr(received, "sampling_params", None) is not None:
        return (received,)
    batch = getattr(received, "batch", None)
    return tuple(batch) if isinstance(batch, list) else ()


def stamp_arrival(request: Any, now_s: float) -> None:
    """Write the instant of arrival into a tokenized request, over whatever a caller put there."""
    params = request.sampling_params
    params.custom_params = {**(params.custom_params or {}), ARRIVAL_FIELD: now_s}


def custom_params(request: Any) -> Mapping[str, Any]:
    """`custom_params` of a `Req` or of a tokenized request; empty when it has none."""
    params = getattr(request.sampling_params, "custom_params", None)
    return params if isinstance(params, dict) else {}


def check_tag(sampling_params: object) -> None:
    """Refuse a malformed tag at the HTTP edge, where the caller still gets a 400.

    Raises:
        ProtocolError: names the field, the offending value and the allowed range.
    """
    params = sampling_params.get("custom_params") if isinstance(sampling_params, dict) else None
    if isinstance(params, dict) and BODY_FIELD in params:
        engine_tag(params[BODY_FIELD])


class TagReader:
    """Reads workflow tags inside the engine, where nobody can be told about a bad one.

    A malformed tag is counted, logged once, and its request treated as best effort. It got
    past both the coordinator and this server's HTTP edge.
    """

    def __init__(self) -> None:
        self.num_malformed = 0

    def read(self, request: Any) -> EngineTag | None:
        """The tag of a `Req` or tokenized request; None without one or with a malformed one."""
        value = custom_params(request).get(BODY_FIELD)
        if value is None:
            return None
        try:
            return engine_tag(value)
        except ProtocolError as error:
            self.num_malformed += 1
            if self.num_malformed == 1:
                logger.warning("hexgen: request %s is best effort: %s", request.rid, error)
            return None


def view_of(req: Any, tags: TagReader) -> RequestView:
    """How the policies see this `Req`.

    `deadline_s` is the instant of arrival plus the tag's budget. `num_cached_tokens` stays 0:
    the prefix is matched after the queue has been ordered.
    """
    arrival_s = custom_params(req).get(ARRIVAL_FIELD)
    if not isinstance(arrival_s, float):
        arrival_s = time.perf_counter()
    num_prompt_tokens = len(req.origin_input_ids)
    tag = tags.read(req)
    if tag is None:
        return RequestView(
            req.rid, workflow_id=req.rid, arrival_s=arrival_s, num_prompt_tokens=num_prompt_tokens
        )
    return RequestView(
        request_id=req.rid,
        workflow_id=tag.workflow_id,
        arrival_s=arrival_s,
        workflow_type=tag.workflow_type or "",
        stage=tag.stage or "",
        deadline_s=None if tag.budget_ms is None else arrival_s + tag.budget_ms / 1000,
        predicted_remaining_s=(tag.predicted_remaining_ms or 0) / 1000,
        predicted_stage_s=(tag.predicted_stage_ms or 0) / 1000,
        num_prompt_tokens=num_prompt_tokens,
        expected_output_tokens=tag.expected_output_tokens,
        siblings=tag.siblings,
        sibling_index=tag.sibling_index,
        tenant=tag.tenant or "",
    )
