"""Which cached prefixes to keep, and in which order to give them up.

Rule: a worker's prefix cache evicts what was used least recently. Just before it may have to,
the prefixes worth keeping are marked as used, the least valuable first: contexts of workflows
between two stages by when they are expected back, the latest first, then the templates that
workflows share. What belongs to workflows that ended or are hopeless is never marked, so it goes
first. Nothing is locked: whatever is kept still goes when running requests need the memory.
When to choose it: the workers' memory holds fewer contexts than workflows are in progress.
Reads (and how fresh): prompts as they arrive; the coordinator's word on stages and ends, as late
as the link brings it.
Cost: one walk through the cache for each prefix kept, at most every `INTERVAL_S`.
Trade-offs (who starves): prompts without a workflow become the oldest, and go before kept ones.

Runs in the plugin on every rank of an engine, and in the simulator. Ranks come to the same order
because they are told the same things at the same instants, which are arguments.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.estimators import BoundedTable, RunningMean

P = TypeVar("P")

# Between two markings: while workflows and templates change, and while they do not.
INTERVAL_S = 0.25
QUIET_INTERVAL_S = 1.0
# A shorter common beginning is no template and no context worth a walk.
WORTH_KEEPING = 128
# A workflow that the coordinator says nothing of for this long is not kept; nor a template.
_FORGOTTEN_S = 600.0
_MAX_WORKFLOWS = 4_096
_MAX_STAGES = 1_024  # templates are remembered for so many stages,
_MAX_VARIANTS = 4  # and so many for each
_MAX_STAGES_OF_ONE = 16
# Contexts of a stage that come back less often than this are not worth the memory.
_LEAST_RETURNS = 0.1


@dataclass(slots=True)
class RetentionTotals:
    """Prompt tokens since the start.

    Attributes:
        kept: in contexts that were to be kept between two stages, each time counted.
        used: of those, found in a later prompt of the workflow. Some would have stayed in the
            cache without being kept.
        wasted: of those, given up or out of time without such a prompt.
        marked: prefixes marked as used.
    """

    kept: int = 0
    used: int = 0
    wasted: int = 0
    marked: int = 0


@dataclass(slots=True, eq=False)
class _Context(Generic[P]):
    """The last prompt of one stage of a workflow, and how much of it prompts had in common."""

    prompt: P
    num_tokens: int
    is_kept: bool = False  # since the stage ended, and not used since


@dataclass(slots=True, eq=False)
class _Kept(Generic[P]):
    """A workflow: `back_s`: when it is expected, while it has no request here."""

    workflow_type: str
    expires_s: float
    back_s: float
    contexts: dict[tuple[Hashable, str], _Context[P]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Template(Generic[P]):
    """What prompts of a stage begin with in different workflows; 0 tokens: not known yet."""

    prompt: P
    workflow_id: str
    used_s: float
    num_tokens: int = 0


class PrefixRetention(Generic[P]):
    """The prefixes of one worker's cache that should stay.

    Args:
        share: of the KV memory that kept prefixes may take, in (0, 1].
        kv_capacity_tokens: the worker's KV memory.
        common: tokens that two prompts share from the first on.
        length: tokens of a prompt.

    Attributes:
        totals: counts of what was kept, used and wasted.

    Raises:
        ConfigError: `share` out of range.
    """

    def __init__(
        self,
        share: float,
        kv_capacity_tokens: int,
        common: Callable[[P, P], int],
        length: Callable[[P], int],
    ) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"retained share={share}: must be above 0 and at most 1")
        self.totals = RetentionTotals()
        self._limit = share * kv_capacity_tokens
        self._common = common
        self._length = length
        self._workflows: OrderedDict[str, _Kept[P]] = OrderedDict()
        self._templates: BoundedTable[Hashable, list[_Template[P]]] = BoundedTable(
            list, _MAX_STAGES
        )
        self._returns: BoundedTable[Hashable, RunningMean] = BoundedTable(RunningMean, _MAX_STAGES)
        self._is_news = False
        self._refreshed_s = float("-inf")

    def arrived(
        self,
        workflow_id: str,
        workflow_type: str,
        stage: str,
        prompt: P,
        now_s: float,
        namespace: Hashable = None,
    ) -> None:
        """A prompt of a tagged workflow came; prompts of another `namespace` share nothing."""
        known = self._workflows.get(workflow_id)
        if known is None:
            known = self._workflows[workflow_id] = _Kept(workflow_type, 0.0, 0.0)
            if len(self._workflows) > _MAX_WORKFLOWS:
                _, oldest = self._workflows.popitem(last=False)
                self._give_up(oldest)
        self._workflows.move_to_end(workflow_id)
        known.expires_s, known.back_s = now_s + _FORGOTTEN_S, now_s
        key = (namespace, stage)
        context = known.contexts.get(key)
        if context is None:
            known.contexts[key] = _Context(prompt, self._length(prompt))
            if len(known.contexts) > _MAX_STAGES_OF_ONE:
                del known.contexts[next(iter(known.contexts))]
        else:
            self._come_back(known.workflow_type, key, context, prompt)
        self._learn_template((namespace, workflow_type, stage), workflow_id, prompt, now_s)
        self._is_news = True

    def retain(self, workflow_id: str, ttl_s: float, now_s: float) -> None:
        """A stage ended: the workflow will be back; keep its contexts for `ttl_s`."""
        known = self._workflows.get(workflow_id)
        if known is None:
            return
        known.expires_s = now_s + ttl_s
        known.back_s = now_s + ttl_s / 2
        for context in known.contexts.values():
            if not context.is_kept:
                context.is_kept = True
                self.totals.kept += context.num_tokens
        self._is_news = True

    def release(self, workflow_id: str) -> None:
        """The workflow ended or is hopeless: its contexts are the first to go."""
        known = self._workflows.pop(workflow_id, None)
        if known is not None:
            self._give_up(known)
            self._is_news = True

    def known(self, workflow_id: str, stage: str) -> tuple[P, int] | None:
        """A prompt, and how many of its tokens the workflow's next one of the stage should share.

        Of the workflow's own context where it had the stage here before, else of the stage's
        template in the workflow's namespace. None for a workflow that has had no prompt here.
        """
        workflow = self._workflows.get(workflow_id)
        if workflow is None:
            return None
        for (_, name), context in workflow.contexts.items():
            if name == stage and context.num_tokens >= WORTH_KEEPING:
                return context.prompt, context.num_tokens
        namespace = next(iter(workflow.contexts))[0]
        templates = self._templates.get((namespace, workflow.workflow_type, stage)) or []
        newest = max(templates, key=lambda template: template.used_s, default=None)
        if newest is None or not newest.num_tokens:
            return None
        return newest.prompt, newest.num_tokens

    def is_due(self, now_s: float) -> bool:
        """Whether there is something to mark, and the last `refresh` is a while ago."""
        if not self._workflows and not self._is_news:
            return False
        interval_s = INTERVAL_S if self._is_news else QUIET_INTERVAL_S
        return now_s - self._refreshed_s >= interval_s

    def refresh(self, now_s: float) -> list[tuple[P, int]]:
        """What to mark as used now, in this order: prompts, and how many tokens of each."""
        self._refreshed_s, self._is_news = now_s, False
        for workflow_id in [key for key, one in self._workflows.items() if one.expires_s < now_s]:
            self._give_up(self._workflows.pop(workflow_id))
        wanted = [*self._pinned(now_s), *self._expected()]
        chosen: list[tuple[P, int]] = []
        taken = 0
        for prompt, num_tokens in wanted:
            taken += num_tokens
            if taken > self._limit:
                break
            chosen.append((prompt, num_tokens))
        self.totals.marked += len(chosen)
        chosen.reverse()
        return chosen

    def _pinned(self, now_s: float) -> list[tuple[P, int]]:
        """Templates in use, the newest first."""
        found = [
            template
            for _, variants in self._templates.items()
            for template in variants
            if template.num_tokens and now_s - template.used_s < _FORGOTTEN_S
        ]
        found.sort(key=lambda template: -template.used_s)
        return [(template.prompt, template.num_tokens) for template in found]

    def _expected(self) -> list[tuple[P, int]]:
        """Contexts of workflows that will be back, the soonest first."""
        workflows = sorted(self._workflows.values(), key=lambda known: known.back_s)
        return [
            (context.prompt, context.num_tokens)
            for known in workflows
            for key, context in known.contexts.items()
            if context.num_tokens >= WORTH_KEEPING and self._returns_of(known, key)
        ]

    def _returns_of(self, known: _Kept[P], key: Hashable) -> bool:
        seen = self._returns.get((known.workflow_type, key))
        return seen is None or seen.count < 8 or seen.mean >= _LEAST_RETURNS

    def _come_back(
        self, workflow_type: str, key: Hashable, context: _Context[P], prompt: P
    ) -> None:
        """A further prompt of the same stage: only what both have is worth keeping."""
        shared = self._common(context.prompt, prompt)
        if context.is_kept:
            context.is_kept = False
            used = min(shared, context.num_tokens)
            self.totals.used += used
            self.totals.wasted += context.num_tokens - used
            self._returns.at((workflow_type, key)).add(float(used >= WORTH_KEEPING))
        context.prompt = prompt
        context.num_tokens = shared if shared >= WORTH_KEEPING else self._length(prompt)

    def _give_up(self, known: _Kept[P]) -> None:
        for key, context in known.contexts.items():
            if context.is_kept:
                self.totals.wasted += context.num_tokens
                self._returns.at((known.workflow_type, key)).add(0.0)

    def _learn_template(self, key: Hashable, workflow_id: str, prompt: P, now_s: float) -> None:
        """Compare with the stage's prompts of other workflows: what they share is a template."""
        variants = self._templates.at(key)
        for template in variants:
            shared = self._common(template.prompt, prompt)
            if shared >= WORTH_KEEPING:
                if template.workflow_id != workflow_id:
                    template.prompt, template.workflow_id = prompt, workflow_id
                    template.num_tokens = shared
                template.used_s = now_s
                return
        variants.append(_Template(prompt, workflow_id, now_s))
        if len(variants) > _MAX_VARIANTS:
            variants.remove(min(variants, key=lambda template: template.used_s))
