"""The model of a trace: workflows, their stages, and the lengths of every LLM request.

Made by the readers in `formats/` and by `synthetic.py`, read by the workload builder, the
bench and the simulator. Lengths and dependencies only: no text, no arrival times.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from hexgen_sglang.core.errors import ConfigError

MAX_TOKENS = 1_048_576
MAX_SIBLINGS = 1024


class PrefixScope(StrEnum):
    """Who else has the same leading prompt tokens."""

    TEMPLATE = "template"  # every request, of any workflow, with a part of this name
    WORKFLOW = "workflow"  # requests of the same workflow with a part of this name


@dataclass(frozen=True, slots=True)
class PrefixPart:
    """A run of leading prompt tokens that other requests have too.

    Parts stand one behind the other from the first token on; two requests share the parts on
    which both agree (scope, name, length) from the start, and of the first part whose name
    agrees but whose length differs, the shorter length. What follows the last part is the
    request's own.

    Attributes:
        scope: among whom the tokens are the same.
        name: which tokens; equal names mean equal tokens within the scope.
        num_tokens: 1 to 1,048,576.
    """

    scope: PrefixScope
    name: str
    num_tokens: int

    def __post_init__(self) -> None:
        check_name("prefix name", self.name)
        check_count("prefix tokens", self.num_tokens, 1, MAX_TOKENS)


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One LLM call of a trace.

    Attributes:
        num_input_tokens: prompt length, 1 to 1,048,576.
        num_output_tokens: exact output length, 1 to 1,048,576.
        prefix: leading parts shared with other requests; () when the whole prompt is its own;
            None when the trace does not say, so that `prefixes.py` applies its rules.
    """

    num_input_tokens: int
    num_output_tokens: int
    prefix: tuple[PrefixPart, ...] | None = None

    def __post_init__(self) -> None:
        check_count("input tokens", self.num_input_tokens, 1, MAX_TOKENS)
        check_count("output tokens", self.num_output_tokens, 1, MAX_TOKENS)
        if self.prefix is not None:
            total = sum(part.num_tokens for part in self.prefix)
            if total > self.num_input_tokens:
                raise ConfigError(
                    f"prefix tokens={total}: their sum must be at most the input tokens "
                    f"({self.num_input_tokens})"
                )


@dataclass(frozen=True, slots=True)
class TraceStage:
    """One node of a workflow: parallel requests that start together and join at its end.

    Attributes:
        name: 1 to 64 characters of [A-Za-z0-9._:/@+=-]; several stages may have one name.
        requests: 1 to 1,024 siblings.
        after: indices of the stages that must have ended first, each below this stage's own
            index; () when it starts with the workflow.
        tool_s: seconds of tool time (SQL, retrieval) between the last of them (or the
            workflow's arrival) and this stage's requests; finite, at least 0.
    """

    name: str
    requests: tuple[TraceRequest, ...]
    after: tuple[int, ...] = ()
    tool_s: float = 0.0

    def __post_init__(self) -> None:
        check_name("stage", self.name)
        check_count("requests of a stage", len(self.requests), 1, MAX_SIBLINGS)
        if not (math.isfinite(self.tool_s) and self.tool_s >= 0):
            raise ConfigError(f"tool_s={self.tool_s}: must be a finite number >= 0")


@dataclass(frozen=True, slots=True)
class TraceWorkflow:
    """One user job: stages in an order in which every stage stands behind what it waits for.

    Attributes:
        workflow_id: its name in the trace, for messages; need not be unique.
        workflow_type: workflows whose stages are alike, e.g. "text2sql".
        stages: at least 1.
    """

    workflow_id: str
    workflow_type: str
    stages: tuple[TraceStage, ...]

    def __post_init__(self) -> None:
        check_name("workflow_type", self.workflow_type)
        if not self.stages:
            raise ConfigError(f"workflow {self.workflow_id!r}: stages=[]: must have at least one")
        for index, stage in enumerate(self.stages):
            for before in stage.after:
                if not 0 <= before < index:
                    raise ConfigError(
                        f"workflow {self.workflow_id!r}: stage {index} ({stage.name}): "
                        f"after={before}: must name an earlier stage (0 to {index - 1})"
                    )

    @property
    def num_requests(self) -> int:
        """LLM calls of the workflow."""
        return sum(len(stage.requests) for stage in self.stages)

    @property
    def num_input_tokens(self) -> int:
        """Prompt tokens of all its requests, shared or not."""
        return sum(request.num_input_tokens for _, _, request in self.requests())

    @property
    def num_output_tokens(self) -> int:
        """Output tokens of all its requests."""
        return sum(request.num_output_tokens for _, _, request in self.requests())

    def requests(self) -> Iterator[tuple[int, int, TraceRequest]]:
        """(stage index, sibling index, request) in stage order."""
        for stage_index, stage in enumerate(self.stages):
            for sibling_index, request in enumerate(stage.requests):
                yield stage_index, sibling_index, request

    def last_stages(self) -> frozenset[int]:
        """Indices of the stages that no other stage waits for."""
        awaited = {before for stage in self.stages for before in stage.after}
        return frozenset(range(len(self.stages))) - awaited

    def shape_digest(self) -> str:
        """Digest of everything but the id: repeats of one query in a trace agree on it."""
        text = repr((self.workflow_type, self.stages))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Trace:
    """Workflows to draw from.

    Attributes:
        name: short name for tables and reports, e.g. "trace1".
        origin: where it came from: a path as given, or "synthetic:N:seed".
        format: "hexgen-flow", "table", "jsonl" or "synthetic".
        workflows: at least 1.
    """

    name: str
    origin: str
    format: str
    workflows: tuple[TraceWorkflow, ...]

    def __post_init__(self) -> None:
        if not self.workflows:
            raise ConfigError(f"trace {self.origin}: no workflows; must have at least one")


def chain(stages: list[tuple[str, tuple[TraceRequest, ...]]]) -> tuple[TraceStage, ...]:
    """Stages of which each waits for the one before it, without tool time."""
    return tuple(
        TraceStage(name=name, requests=requests, after=(index - 1,) if index else ())
        for index, (name, requests) in enumerate(stages)
    )


def check_count(field: str, value: int, low: int, high: int) -> None:
    """Raise ConfigError unless `value` is a whole number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{field}={value!r}: must be a whole number, {low:,} to {high:,}")


def check_name(field: str, value: str) -> None:
    """Raise ConfigError unless `value` can stand as a name in a workflow tag."""
    allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:/@+=-"
    if not (isinstance(value, str) and 1 <= len(value) <= 64 and set(value) <= set(allowed)):
        raise ConfigError(f"{field}={value!r}: must be 1 to 64 characters of [A-Za-z0-9._:/@+=-]")
