"""Prefixes that this engine computes before their request comes: requests that nobody has sent.

Runs on SGLang's scheduler thread. The rank that owns the link puts a prefix together; the command
reaches every rank, and each makes the same request of it, so that all of them compute it in the
same step. It goes through SGLang's own queue and cache as any other of one output token, behind
all that has a deadline; SGLang is told that its output was sent already.
"""

from __future__ import annotations

import copy
import sys
import uuid
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hexgen_sglang.plugin.request_view import ARRIVAL_FIELD, TagReader
from hexgen_sglang.plugin.retained_prefixes import (
    Prompt,
    RetentionCommand,
    common_tokens,
    radix_key,
)
from hexgen_sglang.policies.retention import AheadTotals, PrefixesAhead
from hexgen_sglang.protocol.messages import Prewarm
from hexgen_sglang.protocol.tag import BODY_FIELD

# Prefixes of which some messages have come and some have not.
_MAX_OPEN = 64
# Of a request that is copied: what makes it more than a text to be continued.
_MORE_THAN_TEXT = (
    "lora_id", "mm_inputs", "input_embeds", "session_id", "session_params", "bootstrap_room",
    "custom_logit_processor", "positional_embed_overrides", "return_logprob",
)  # fmt: skip
_LEFT_OUT = ("token_type_ids", "time_stats", "kv_hints")
_NO_GRAMMAR = ("json_schema", "regex", "ebnf", "structural_tag")

Match = Callable[[Prompt, int], int]
Known = Callable[[str, str], "tuple[Prompt, int] | None"]
CountAhead = Callable[[AheadTotals], None]


@dataclass(frozen=True, slots=True)
class PrewarmPrefix(RetentionCommand):
    """A prompt of the workflow's stage is expected as of `now_s`.

    It begins with `token_ids`; None: with what the engine knows itself.
    """

    workflow_id: str
    stage: str
    ttl_s: float
    now_s: float
    token_ids: array[int] | None
    request_id: str


class Parts:
    """Puts prefixes together that come in several messages; on the rank that owns the link."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, array[int]] = OrderedDict()

    def add(self, message: Prewarm, now_s: float) -> PrewarmPrefix | None:
        """The command, once all of it has come; parts behind a lost one are dropped."""
        token_ids = None
        if message.num_tokens:
            token_ids = self._joined(message)
            if token_ids is None:
                return None
        return PrewarmPrefix(
            message.workflow_id,
            message.stage,
            message.ttl_ms / 1_000,
            now_s,
            token_ids,
            f"hexgen-ahead-{uuid.uuid4().hex}",
        )

    def _joined(self, message: Prewarm) -> array[int] | None:
        begun = self._open.pop(message.workflow_id, array("i"))
        if message.offset != len(begun):
            if message.offset:
                return None
            begun = array("i")  # begins anew
        part = array("i")
        part.frombytes(message.token_ids[: len(message.token_ids) // 4 * 4])
        if sys.byteorder == "big":
            part.byteswap()
        begun.extend(part)
        if not part or len(begun) > message.num_tokens or min(part) < 0:
            return None
        if len(begun) == message.num_tokens:
            return array("q", begun)
        self._open[message.workflow_id] = begun
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)
        return None


class AheadOnRank:
    """What one rank computes ahead.

    Args:
        share: of the KV memory, as of `PrefixesAhead`.
        kv_capacity_tokens: of the engine.
        longest: tokens of the longest prompt that it takes.
        match: tokens of a prompt's beginning that are cached; marks them as used.
        known: what the engine knows of a workflow's stage itself.
        count: told the rule's counts when they have changed.

    Raises:
        ConfigError: `share` out of range.
    """

    def __init__(
        self,
        share: float,
        kv_capacity_tokens: int,
        longest: int,
        match: Match,
        known: Known,
        count: CountAhead | None = None,
    ) -> None:
        self.rule: PrefixesAhead[Prompt] = PrefixesAhead(share, kv_capacity_tokens, common_tokens)
        self._longest = longest
        self._match = match
        self._known = known
        self._count = count
        self._tags = TagReader()
        self._pattern: Any = None
        self._request_ids: set[str] = set()  # made, and not launched yet

    def arrived(self, request: Any) -> None:
        """A tokenized request came from SGLang's front."""
        if request.input_ids is None or any(
            getattr(request, name, None) for name in _MORE_THAN_TEXT
        ):
            return
        self._pattern = request
        tag = self._tags.read(request)
        if tag is not None:
            salt = getattr(request, "cache_salt", None)
            prompt = Prompt(request.input_ids, request.extra_key, salt or None)
            self.rule.arrived(tag.workflow_id, prompt)
            self._tell()

    def release(self, workflow_id: str) -> None:
        """The workflow has ended, or is hopeless."""
        self.rule.release(workflow_id)
        self._tell()

    def request(self, command: PrewarmPrefix, *, is_busy: bool) -> Any | None:
        """The request that computes the prefix, or None: it is not worth it now."""
        found = (
            self._known(command.workflow_id, command.stage)
            if command.token_ids is None
            else (Prompt(command.token_ids, None, None), len(command.token_ids))
        )
        if found is None or self._pattern is None:
            return None
        prompt, num_tokens = found
        if num_tokens >= self._longest:
            return None
        prefix = Prompt(prompt.token_ids[:num_tokens], prompt.extra_key, prompt.cache_salt)
        begins = self.rule.begin(
            command.workflow_id,
            prefix,
            num_tokens,
            self._match(prefix, num_tokens),
            is_busy=is_busy,
            now_s=command.now_s,
            ttl_s=command.ttl_s,
        )
        self._tell()
        return self._made(command, prefix) if begins else None

    def launched(self, requests: list[Any]) -> None:
        """These `Req` are about to run: SGLang is not to send the output of ours."""
        if not self._request_ids:
            return
        for req in requests:
            if req.rid in self._request_ids:
                self._request_ids.discard(req.rid)
                req.finished_output = True

    def _made(self, command: PrewarmPrefix, prefix: Prompt) -> Any:
        """A copy of a request that came, with another prompt and one output token."""
        request = copy.copy(self._pattern)
        request.rid = command.request_id
        request.input_text = ""
        request.input_ids = prefix.token_ids
        request.stream = False
        request.extra_key = prefix.extra_key
        if hasattr(request, "cache_salt"):
            request.cache_salt = prefix.cache_salt
        for name in _LEFT_OUT:
            if hasattr(request, name):
                setattr(request, name, None)
        params = request.sampling_params = copy.copy(request.sampling_params)
        params.max_new_tokens = 1
        params.min_new_tokens = 0
        for name in _NO_GRAMMAR:
            setattr(params, name, None)
        params.custom_params = {
            BODY_FIELD: {"workflow_id": command.workflow_id, "stage": command.stage},
            ARRIVAL_FIELD: command.now_s,
        }
        self._request_ids.add(command.request_id)
        return request

    def _tell(self) -> None:
        if self._count is not None:
            self._count(self.rule.totals)


def match_in(tree_cache: Any) -> Match:
    """How much of a prompt is in SGLang's prefix cache."""
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams

    def match(prompt: Prompt, num_tokens: int) -> int:
        found = tree_cache.match_prefix(MatchPrefixParams(key=radix_key(prompt, num_tokens)))
        length = getattr(found, "device_prefix_len", None)
        return len(found.device_indices) if length is None else int(length)

    return match


def metric_count_ahead() -> CountAhead:
    """Puts the counts into this process's Prometheus metrics."""
    from prometheus_client import Counter

    tokens = Counter(
        "hexgen_prewarmed_prefix_tokens",
        "Prompt tokens computed before their request came, and what became of them",
        ("outcome",),
    )
    prefixes = Counter(
        "hexgen_prewarms_left",
        "Prefixes that were asked for ahead and not computed",
        ("reason",),
    )
    told = AheadTotals()

    def count(totals: AheadTotals) -> None:
        for counter, names in (
            (tokens, ("computed", "saved", "wasted")),
            (prefixes, ("refused", "present")),
        ):
            for name in names:
                now, before = getattr(totals, name), getattr(told, name)
                counter.labels(name).inc(now - before)
                setattr(told, name, now)

    return count
