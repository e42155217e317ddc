"""Prefixes that this engine keeps between the stages of workflows: the rule on SGLang's cache.

Runs on SGLang's scheduler thread, on every rank of an engine: requests and commands reach all of
them in one order, and carry their instants, so that all ranks mark the same prefixes in the same
step. SGLang evicts the least recently used leaves; marking is a walk along the prefix.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hexgen_sglang.plugin.prefix_hold import shared_tokens
from hexgen_sglang.plugin.request_view import ARRIVAL_FIELD, TagReader, custom_params
from hexgen_sglang.policies.retention import PrefixRetention, RetentionTotals
from hexgen_sglang.protocol.messages import Release, Retain


@dataclass(frozen=True, slots=True)
class RetentionCommand:
    """Base of what all ranks do about prefixes; picklable. Instants as of the receiving rank."""


@dataclass(frozen=True, slots=True)
class RetainPrefixes(RetentionCommand):
    """The workflow is between two stages as of `now_s`, for at most `ttl_s`."""

    workflow_id: str
    ttl_s: float
    now_s: float


@dataclass(frozen=True, slots=True)
class ReleasePrefixes(RetentionCommand):
    """The workflow's prefixes may go."""

    workflow_id: str


@dataclass(frozen=True, slots=True)
class MarkPrefixes(RetentionCommand):
    """Mark what is to be kept as used, as of `now_s`."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and what else SGLang's cache tells prompts apart by."""

    token_ids: array[int]
    extra_key: str | None
    cache_salt: str | None


Touch = Callable[[Prompt, int], None]
Count = Callable[[RetentionTotals], None]


def retention_command(message: Retain | Release, now_s: float) -> RetentionCommand:
    """The command for all ranks that a link message asks for, received at `now_s`."""
    if isinstance(message, Retain):
        return RetainPrefixes(message.workflow_id, message.ttl_ms / 1_000, now_s)
    return ReleasePrefixes(message.workflow_id)


class RetainedPrefixes:
    """What one rank keeps.

    Args:
        share: of the KV memory that kept prefixes may take, in (0, 1].
        kv_capacity_tokens: of the engine.
        touch: marks so many tokens of a prompt as used, as far as they are cached.
        count: told the rule's counts after each marking.

    Raises:
        ConfigError: `share` out of range.
    """

    def __init__(
        self, share: float, kv_capacity_tokens: int, touch: Touch, count: Count | None = None
    ) -> None:
        self.rule: PrefixRetention[Prompt] = PrefixRetention(
            share, kv_capacity_tokens, common_tokens, _num_tokens
        )
        self._touch = touch
        self._count = count
        self._tags = TagReader()

    def arrived(self, request: Any) -> None:
        """A tokenized request; without a workflow, or with more than text, it is not kept."""
        arrival_s = custom_params(request).get(ARRIVAL_FIELD)
        tag = self._tags.read(request)
        if tag is None or not isinstance(arrival_s, float) or request.input_ids is None:
            return
        if request.lora_id is not None or request.mm_inputs is not None:
            return  # SGLang's cache knows these prompts under other keys than their ids
        salt = getattr(request, "cache_salt", None)  # 0.5.17 has it in extra_key
        prompt = Prompt(request.input_ids, request.extra_key, salt or None)
        self.rule.arrived(
            tag.workflow_id,
            tag.workflow_type or "",
            tag.stage or "",
            prompt,
            arrival_s,
            (prompt.extra_key, prompt.cache_salt),
        )

    def is_due(self, now_s: float) -> bool:
        """Whether all ranks should mark; asked on the receiving one."""
        return self.rule.is_due(now_s)

    def apply(self, command: RetentionCommand) -> None:
        """Do what a command says."""
        if isinstance(command, RetainPrefixes):
            self.rule.retain(command.workflow_id, command.ttl_s, command.now_s)
        elif isinstance(command, ReleasePrefixes):
            self.rule.release(command.workflow_id)
        elif isinstance(command, MarkPrefixes):
            for prompt, num_tokens in self.rule.refresh(command.now_s):
                self._touch(prompt, num_tokens)
            if self._count is not None:
                self._count(self.rule.totals)


def touch_in(tree_cache: Any) -> Touch:
    """How prompts are marked as used in SGLang's prefix cache."""
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams

    walk = getattr(tree_cache, "touch_prefix", None)  # 0.5.20 and older: matching marks, too

    def touch(prompt: Prompt, num_tokens: int) -> None:
        key = radix_key(prompt, num_tokens)
        if walk is not None:
            walk(key)
        else:
            tree_cache.match_prefix(MatchPrefixParams(key=key))

    return touch


def radix_key(prompt: Prompt, num_tokens: int) -> Any:
    """The beginning of a prompt as SGLang's prefix cache names it."""
    from sglang.srt.mem_cache.radix_cache import RadixKey

    salt = {"cache_salt": prompt.cache_salt} if prompt.cache_salt else {}
    ids = prompt.token_ids
    token_ids = ids if isinstance(ids, array) else array("q", ids)
    return RadixKey(token_ids, extra_key=prompt.extra_key, limit=num_tokens, **salt)


def metric_count() -> Count:
    """Puts the counts into this process's Prometheus metrics."""
    from prometheus_client import Counter

    tokens = Counter(
        "hexgen_retained_prefix_tokens",
        "Prompt tokens of workflows kept between two stages, and what became of them",
        ("outcome",),
    )
    told = RetentionTotals()

    def count(totals: RetentionTotals) -> None:
        for outcome in ("kept", "used", "wasted"):
            now, before = getattr(totals, outcome), getattr(told, outcome)
            tokens.labels(outcome).inc(now - before)
            setattr(told, outcome, now)

    return count


def common_tokens(one: Prompt, other: Prompt) -> int:
    """Tokens that two prompts share from the first on, where the cache lets them."""
    if (one.extra_key, one.cache_salt) != (other.extra_key, other.cache_salt):
        return 0
    return shared_tokens(one.token_ids, other.token_ids)


def _num_tokens(prompt: Prompt) -> int:
    return len(prompt.token_ids)
