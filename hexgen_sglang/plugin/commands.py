"""The coordinator's commands on their way into SGLang's scheduler.

The rank that owns the link turns them into objects that travel with SGLang's own input to
every rank of the engine, and each rank applies them before its next step: all ranks change the
same queue at the same moment, as SGLang needs. Instants are `time.perf_counter()` of the rank
that owns the link.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin.ordering import QueueOrder
from hexgen_sglang.protocol.messages import PolicySettings, Reprioritise

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QueueCommand:
    """Base of what SGLang carries for us beside requests; picklable, since ranks exchange it."""


@dataclass(frozen=True, slots=True)
class SetDeadline(QueueCommand):
    """A workflow has until `deadline_s` (None: best effort) as of the instant `changed_s`."""

    workflow_id: str
    deadline_s: float | None
    predicted_remaining_s: float
    changed_s: float


@dataclass(frozen=True, slots=True)
class SetOrdering(QueueCommand):
    """Order by another policy."""

    ordering: str
    settings: tuple[tuple[str, float], ...]


def queue_command(message: Reprioritise | PolicySettings, now_s: float) -> QueueCommand:
    """The command for all ranks that a link message asks for, received at `now_s`."""
    if isinstance(message, PolicySettings):
        return SetOrdering(message.ordering, tuple(sorted(message.settings.items())))
    budget_ms = message.budget_ms
    return SetDeadline(
        message.workflow_id,
        None if budget_ms is None else now_s + budget_ms / 1000,
        message.predicted_remaining_ms / 1000,
        now_s,
    )


class CommandCounter:
    """Applies commands to a queue and counts the ones that it cannot apply."""

    def __init__(self) -> None:
        self.num_applied = 0
        self.num_refused = 0

    def apply(self, command: QueueCommand, order: QueueOrder | None) -> str:
        """Change the order of the queue; a command that cannot be applied changes nothing.

        `order` is None where SGLang's own policy orders the queue. Returns why it was not
        applied, "" when it was.
        """
        if order is None:
            return self._refuse(command, "this server's --schedule-policy is not hexgen")
        try:
            if isinstance(command, SetDeadline):
                order.reprioritise(
                    command.workflow_id,
                    command.deadline_s,
                    command.predicted_remaining_s,
                    command.changed_s,
                )
            elif isinstance(command, SetOrdering):
                order.use(command.ordering, dict(command.settings))
                logger.info("hexgen: the queue is ordered by %s now", command.ordering)
        except ConfigError as error:
            return self._refuse(command, str(error))
        self.num_applied += 1
        return ""

    def _refuse(self, command: QueueCommand, reason: str) -> str:
        self.num_refused += 1
        logger.warning("hexgen: %s has no effect: %s", type(command).__name__, reason)
        return reason
