"""Which prompt tokens requests have in common, and the token ids that make it true.

A prompt is a list of segments from its first token on; equal keys mean equal tokens. The
bench turns segments into ids, the simulator works on the segments themselves.

Rules for a Text-to-SQL request whose trace does not state its prefix (lengths in tokens):
1. It starts with the static template of its step, the published length (`text2sql_steps.py`).
2. Then comes the workflow's own context (schema, question, evidence). Requests of a workflow
   that have the same template share it, as revise rounds, evaluations and retrievals do. Its
   length is what the shortest of them has behind the template, less the step's own tail.
3. The rest is the request's own: a draft and its error, a unit test, a keyword.
Steps do not share with each other, since their templates differ from the first token on; the
context of a revise is the same text as its candidate's, but behind another template. Prompts
never contain generated tokens: the published pipeline sends each step a fresh prompt.
A request of another workflow type without a stated prefix is all its own.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.text2sql_steps import (
    STEP_BY_NAME,
    WORKFLOW_TYPE,
    Step,
    template_of,
)
from hexgen_sglang.workload.trace import PrefixPart, PrefixScope, TraceWorkflow

CONTEXT = "context"

TokenIds = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of prompt tokens: the first `num_tokens` of the stream called `key`."""

    key: str
    num_tokens: int


Prompt = tuple[Segment, ...]


def prompts_of(workflow: TraceWorkflow, instance: str, context: str) -> list[list[Prompt]]:
    """The prompt of every request, as [stage][sibling].

    Args:
        workflow: the trace's workflow.
        instance: unique for this run of the workflow; what is a request's own differs by it.
        context: requests of workflows with the same `context` share parts of scope
            "workflow"; give `instance` again when repeats of a query must not share.
    """
    parts = _stated_or_ruled(workflow)
    prompts: list[list[Prompt]] = []
    for stage_index, stage in enumerate(workflow.stages):
        prompts.append([])
        for sibling, request in enumerate(stage.requests):
            segments = [_segment(part, context) for part in parts[stage_index][sibling]]
            own = request.num_input_tokens - sum(segment.num_tokens for segment in segments)
            if own:
                segments.append(Segment(f"own/{instance}/{stage_index}/{sibling}", own))
            prompts[-1].append(tuple(segments))
    return prompts


def _segment(part: PrefixPart, context: str) -> Segment:
    if part.scope is PrefixScope.TEMPLATE:
        return Segment(f"template/{part.name}", part.num_tokens)
    return Segment(f"workflow/{context}/{part.name}", part.num_tokens)


def _stated_or_ruled(workflow: TraceWorkflow) -> list[list[tuple[PrefixPart, ...]]]:
    """The shared parts of every request: as the trace states them, else by the rules above."""
    parts: list[list[tuple[PrefixPart, ...]]] = [
        [request.prefix or () for request in stage.requests] for stage in workflow.stages
    ]
    if workflow.workflow_type != WORKFLOW_TYPE:
        return parts
    for (name, which), members in _by_template(workflow).items():
        step = STEP_BY_NAME[name]
        shared = _shared_parts(step, which, min(length for _, _, length in members))
        for stage_index, sibling, _ in members:
            parts[stage_index][sibling] = shared
    return parts


def _by_template(workflow: TraceWorkflow) -> dict[tuple[str, int], list[tuple[int, int, int]]]:
    """(step, template) -> (stage, sibling, input tokens) of requests without a stated prefix."""
    counts: dict[str, int] = defaultdict(int)
    totals: dict[str, int] = defaultdict(int)
    for stage in workflow.stages:
        totals[stage.name] += len(stage.requests)
    groups: dict[tuple[str, int], list[tuple[int, int, int]]] = defaultdict(list)
    for stage_index, sibling, request in workflow.requests():
        name = workflow.stages[stage_index].name
        step = STEP_BY_NAME.get(name)
        if step is None:
            continue
        which = template_of(step, counts[name], totals[name])
        counts[name] += 1
        if request.prefix is None:
            groups[name, which].append((stage_index, sibling, request.num_input_tokens))
    return groups


def _shared_parts(step: Step, which: int, shortest: int) -> tuple[PrefixPart, ...]:
    """Template and context of a group whose shortest prompt has `shortest` tokens."""
    template = min(step.template_tokens[which], shortest)
    suffix = f".{which}" if which else ""
    parts = [PrefixPart(PrefixScope.TEMPLATE, step.name + suffix, template)]
    context = shortest - template - step.own_tail_tokens
    if context > 0:
        parts.append(PrefixPart(PrefixScope.WORKFLOW, CONTEXT, context))
    return tuple(parts)


class PrefixIndex:
    """What an unbounded prefix cache would hold: the shared part of a prompt seen before.

    Works on segments, so it is exact and cheap. Not a model of a worker's cache, which is
    bounded.
    """

    def __init__(self) -> None:
        self._longest: dict[tuple[str, ...], int] = {}

    def match(self, prompt: Prompt) -> int:
        """Leading tokens of the prompt that were inserted before."""
        matched = 0
        path: tuple[str, ...] = ()
        for segment in prompt:
            path = (*path, f"{segment.key}")
            held = min(self._longest.get(path, 0), segment.num_tokens)
            matched += held
            if held < segment.num_tokens:
                break
            path = (*path, str(segment.num_tokens))
        return matched

    def insert(self, prompt: Prompt) -> None:
        """Remember the whole prompt."""
        path: tuple[str, ...] = ()
        for segment in prompt:
            path = (*path, segment.key)
            self._longest[path] = max(self._longest.get(path, 0), segment.num_tokens)
            path = (*path, str(segment.num_tokens))


class TokenSource:
    """Token ids for segments: the same (seed, key) gives the same stream of ids, always.

    Streams of different keys are independent and uniform over the ids, so two prompts that
    part company share a further token by chance once in `num_ids` times.

    Args:
        seed: at least 0.
        num_ids: how many ids there are to choose from, at least 256.
        first_id: the smallest id; ids below it (special tokens) are never used, at least 0.

    Raises:
        ConfigError: an argument out of range.
    """

    def __init__(self, seed: int, num_ids: int, first_id: int = 0) -> None:
        for field, value, low in (
            ("seed", seed, 0),
            ("num_ids", num_ids, 256),
            ("first_id", first_id, 0),
        ):
            if value < low:
                raise ConfigError(f"{field}={value}: must be at least {low}")
        self._seed = seed
        self._num_ids = num_ids
        self._first_id = first_id
        self._templates: dict[str, TokenIds] = {}

    def input_ids(self, prompt: Prompt) -> TokenIds:
        """The prompt's token ids, int32, one dimension."""
        return np.concatenate([self._ids(segment) for segment in prompt])

    def _ids(self, segment: Segment) -> TokenIds:
        if not segment.key.startswith("template/"):
            return self._draw(segment)
        held = self._templates.get(segment.key)
        if held is None or len(held) < segment.num_tokens:
            held = self._draw(segment)
            self._templates[segment.key] = held
        return held[: segment.num_tokens]

    def _draw(self, segment: Segment) -> TokenIds:
        """Raw words of a keyed counter generator: a longer draw begins with the shorter one."""
        digest = hashlib.blake2b(f"{self._seed}/{segment.key}".encode(), digest_size=16).digest()
        words = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(
            segment.num_tokens
        )
        ids = self._first_id + (words % np.uint64(self._num_ids)).astype(np.int64)
        return ids.astype(np.int32)
