"""Seconds of work: a request, and a whole workflow, alone on idle accelerators.

The unloaded latency of a workflow is the yardstick of deadlines and of "smallest scale", the
same for every system of a comparison. Pure arithmetic on accelerator profiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from hexgen_sglang.core.accelerator import AcceleratorProfile, decode_s, prefill_s
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.prefixes import PrefixIndex, Prompt, prompts_of
from hexgen_sglang.workload.trace import TraceWorkflow


class Reuse(StrEnum):
    """Which prompt tokens an unloaded worker is taken to have in its prefix cache."""

    PERFECT = "perfect"  # every template, and what the workflow itself sent before
    NONE = "none"  # nothing


def request_s(
    profile: AcceleratorProfile,
    num_input_tokens: int,
    num_cached_tokens: int,
    num_output_tokens: int,
) -> float:
    """Seconds of one request alone: its prefill, then a decode step for each further token.

    The prefill makes the first output token and computes at least one prompt token.
    """
    seconds = prompt_s(profile, num_input_tokens, num_cached_tokens)
    steps = num_output_tokens - 1
    if steps > 0:
        # The context grows by one a step and a step is linear in it: twice the mean step.
        first = decode_s(profile, 1, num_input_tokens + 1)
        last = decode_s(profile, 1, num_input_tokens + steps)
        seconds += steps * (first + last) / 2
    return seconds


def prompt_s(profile: AcceleratorProfile, num_input_tokens: int, num_cached_tokens: int) -> float:
    """Seconds of one prompt's prefill, in chunks; at least one token is computed."""
    start = min(num_cached_tokens, num_input_tokens - 1)
    seconds = 0.0
    while start < num_input_tokens:
        size = min(profile.prefill.chunk_tokens.value, num_input_tokens - start)
        seconds += prefill_s(profile, [(size, start)])
        start += size
    return seconds


def unloaded_s(
    workflow: TraceWorkflow,
    profiles: Sequence[AcceleratorProfile],
    reuse: Reuse = Reuse.PERFECT,
) -> float:
    """Seconds the workflow takes when nothing else runs: its critical path.

    Every request runs alone, siblings side by side; a request's seconds are the mean over
    `profiles` (one entry for each worker of the cluster, or one reference worker). A stage
    ends with its slowest sibling and starts `tool_s` after the last stage it waits for. With
    `Reuse.PERFECT` templates are cached, and a request finds what earlier requests of its
    workflow, in stage order, have in common with it.

    Raises:
        ConfigError: no profile was given.
    """
    if not profiles:
        raise ConfigError("profiles=[]: at least one accelerator profile is needed")
    cached = cached_tokens(workflow, reuse)
    ends: list[float] = []
    for index, stage in enumerate(workflow.stages):
        start = max((ends[before] for before in stage.after), default=0.0) + stage.tool_s
        slowest = max(
            sum(
                request_s(profile, request.num_input_tokens, hit, request.num_output_tokens)
                for profile in profiles
            )
            / len(profiles)
            for request, hit in zip(stage.requests, cached[index], strict=True)
        )
        ends.append(start + slowest)
    return max(ends)


def cached_tokens(workflow: TraceWorkflow, reuse: Reuse) -> list[list[int]]:
    """Prompt tokens each request finds cached, as [stage][sibling]; see `Reuse`."""
    if reuse is Reuse.NONE:
        return [[0] * len(stage.requests) for stage in workflow.stages]
    index = PrefixIndex()
    hits: list[list[int]] = []
    for stage_prompts in prompts_of(workflow, "0", "0"):
        hits.append([])
        for prompt in stage_prompts:
            index.insert(template_part(prompt))
            hits[-1].append(index.match(prompt))
            index.insert(prompt)
    return hits


def template_part(prompt: Prompt) -> Prompt:
    """The leading segments that every workflow has."""
    templates = []
    for segment in prompt:
        if not segment.key.startswith("template/"):
            break
        templates.append(segment)
    return tuple(templates)
