"""The workflow tag for any HTTP client: a body field for OpenAI clients, or headers.

Lives in the caller's process; imports neither SGLang nor torch. What the tag means and its
ranges stand in `protocol/tag.py`; sending requests is the caller's own client's job.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from hexgen_sglang.client.coordinator import CoordinatorClient
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.protocol.tag import BODY_FIELD, HEADER_PREFIX, tag_from_body

MAX_BUDGET_MS = 86_400_000


class Workflow:
    """One user question: its id, its deadline, and the tags of its requests.

    The deadline runs from the moment this object is made. Each tag states what is left of it
    when the tag is made, so make a tag right before the request is sent.

    As an async context manager it tells the coordinator at `url` when the workflow is over:

        async with Workflow(type="text2sql", deadline_s=20, url="http://127.0.0.1:30000") as w:
            await client.chat.completions.create(..., extra_body=w.tag("link_schema"))

    Args:
        type: workflows whose stages are alike, e.g. "text2sql"; None when unknown.
        deadline_s: seconds from now until the workflow should end, above 0 and at most
            86,400; None: the coordinator's default for the type, else best effort.
        tenant: for fairness and accounting.
        workflow_id: 1-128 characters of [A-Za-z0-9._:/@+=-]; None: a new random one.
        url: the coordinator; needed only as a context manager or for `end`.
        clock: monotonic seconds.

    Raises:
        ConfigError: `deadline_s` is out of range.
        ProtocolError: a name or the id breaks the tag's rules.
    """

    def __init__(
        self,
        type: str | None = None,
        deadline_s: float | None = None,
        tenant: str | None = None,
        workflow_id: str | None = None,
        url: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_deadline_s(deadline_s)
        self.type = type
        self.deadline_s = deadline_s
        self.tenant = tenant
        self.workflow_id = workflow_id if workflow_id is not None else uuid.uuid4().hex
        self.url = url
        self._clock = clock
        self._started_s = clock()
        self.fields()

    def elapsed_s(self) -> float:
        """Seconds since this workflow began."""
        return self._clock() - self._started_s

    def remaining_s(self) -> float | None:
        """Seconds left until the deadline, negative when it has passed; None: no deadline."""
        return None if self.deadline_s is None else self.deadline_s - self.elapsed_s()

    def budget_ms(self) -> int | None:
        """What is left, as the tag states it: at least 1, since the tag knows no "too late".

        A workflow past its deadline thus stays the most urgent one; who wants to give up
        instead looks at `remaining_s`.
        """
        remaining_s = self.remaining_s()
        if remaining_s is None:
            return None
        return min(MAX_BUDGET_MS, max(1, math.floor(remaining_s * 1000)))

    def fields(
        self,
        stage: str | None = None,
        *,
        siblings: int = 1,
        sibling_index: int = 0,
        final: bool = False,
        expected_output_tokens: int | None = None,
    ) -> dict[str, Any]:
        """The tag of one request as plain JSON, for the body field `hexgen`.

        Raises:
            ProtocolError: names the field, the offending value and the allowed range.
        """
        values: dict[str, Any] = {
            "workflow_id": self.workflow_id,
            "workflow_type": self.type,
            "stage": stage,
            "budget_ms": self.budget_ms(),
            "tenant": self.tenant,
            "expected_output_tokens": expected_output_tokens,
        }
        fields = {name: value for name, value in values.items() if value is not None}
        if siblings != 1 or sibling_index != 0:
            fields |= {"siblings": siblings, "sibling_index": sibling_index}
        if final:
            fields["final"] = True
        tag_from_body(fields)
        return fields

    def tag(self, stage: str | None = None, **options: Any) -> dict[str, Any]:
        """`extra_body` for the OpenAI client. Options and errors as in `fields`."""
        return {BODY_FIELD: self.fields(stage, **options)}

    def headers(self, stage: str | None = None, **options: Any) -> dict[str, str]:
        """The same tag as `x-hexgen-*` headers. Options and errors as in `fields`."""
        return {
            HEADER_PREFIX + name.replace("_", "-"): str(value).lower()
            if value is True
            else str(value)
            for name, value in self.fields(stage, **options).items()
        }

    def end(self) -> None:
        """Tell the coordinator that the workflow is over; blocks for one HTTP call.

        Raises:
            ConfigError: no `url` was given.
            WorkerUnavailableError: the coordinator cannot be reached.
        """
        if self.url is None:
            raise ConfigError("Workflow.url=None: ending a workflow needs the coordinator's URL")
        CoordinatorClient(self.url).end_workflow(self.workflow_id)

    async def __aenter__(self) -> Self:
        if self.url is None:
            raise ConfigError("Workflow.url=None: `async with` needs the coordinator's URL")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.end)


def check_deadline_s(deadline_s: float | None) -> None:
    """Refuse a deadline that no tag can state.

    Raises:
        ConfigError: not above 0 and at most 86,400 seconds.
    """
    if deadline_s is None:
        return
    if not 0 < deadline_s <= MAX_BUDGET_MS / 1000:
        raise ConfigError(f"deadline_s={deadline_s}: must be above 0 and at most 86400 seconds")
