"""One worker's agents, one for each coordinator that it serves: told alike, heard together.

Runs in SGLang's scheduler process, between `telemetry` and each `WorkerAgent`. A coordinator that
is gone holds up none of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from hexgen_sglang.plugin.agent import AgentStatus, WorkerAgent
from hexgen_sglang.protocol.messages import CoordinatorMessage, Load, WorkerMessage


class WorkerAgents:
    """Several agents as one; see `WorkerAgent` for each call.

    Args:
        agents: at least one.
    """

    def __init__(self, agents: Sequence[WorkerAgent]) -> None:
        self._agents = tuple(agents)

    def start(self) -> None:
        """Open every connection."""
        for agent in self._agents:
            agent.start()

    def stop(self, reason: str) -> None:
        """Say goodbye to every coordinator."""
        for agent in self._agents:
            agent.stop(reason)

    def report_load(self, load: Load) -> None:
        """Have every coordinator know this load."""
        for agent in self._agents:
            agent.report_load(load)

    def report(self, message: WorkerMessage) -> None:
        """Tell every coordinator."""
        for agent in self._agents:
            agent.report(message)

    def take_commands(self) -> list[CoordinatorMessage]:
        """What any of them asked for since the last call."""
        return [command for agent in self._agents for command in agent.take_commands()]

    def statuses(self) -> list[AgentStatus]:
        """How each link stands."""
        return [agent.status() for agent in self._agents]
