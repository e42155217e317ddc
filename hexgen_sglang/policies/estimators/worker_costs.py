"""What each worker's steps cost: as its plugin measured them, else as a profile states."""

from __future__ import annotations

from dataclasses import replace

from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.policies.estimators.averages import BoundedTable

# Ten million prompt tokens a second, ten thousand decode steps a second.
_LEAST_TOKEN_S = 1e-7
_LEAST_STEP_S = 1e-4


class WorkerCosts:
    """Step costs by worker id, and by hardware name for workers that have not told any.

    Args:
        max_workers: remembered at most; the longest unheard of goes first.
    """

    def __init__(self, max_workers: int = 4_096) -> None:
        self._measured: BoundedTable[str, list[StepCosts]] = BoundedTable(list, max_workers)
        self._stated: dict[str, StepCosts] = {}
        self._fastest: StepCosts | None = None

    def state(self, hardware: str, costs: StepCosts) -> None:
        """What workers of this hardware cost, from a profile."""
        self._stated[hardware] = costs

    def note(self, worker_id: str, costs: StepCosts) -> None:
        """What a worker measured of its own steps; replaces what it told before.

        Less than what any accelerator could take is raised to that: no worker is free.
        """
        self._measured.at(worker_id)[:] = [
            replace(
                costs,
                prefill_token_s=max(costs.prefill_token_s, _LEAST_TOKEN_S),
                decode_base_s=max(costs.decode_base_s, _LEAST_STEP_S),
            )
        ]
        self._find_fastest()

    @property
    def fastest(self) -> StepCosts | None:
        """Of the worker that would answer a usual request first, of those that told; or None."""
        return self._fastest

    def measured(self, worker_id: str) -> StepCosts | None:
        """What the worker told; None before."""
        told = self._measured.get(worker_id)
        return told[0] if told else None

    def of(self, worker_id: str, hardware: str = "") -> StepCosts | None:
        """Measured, else stated for the hardware, else None."""
        return self.measured(worker_id) or self._stated.get(hardware)

    def rename(self, old_id: str, new_id: str) -> None:
        """The same worker under another id."""
        self._measured.move(old_id, new_id)

    def forget(self, worker_id: str) -> None:
        """The worker is gone, or its process is a new one."""
        self._measured.drop(lambda known: known == worker_id)
        self._find_fastest()

    def _find_fastest(self) -> None:
        told = [costs[0] for _, costs in self._measured.items() if costs]
        self._fastest = min(told, key=_usual_s, default=None)


def _usual_s(costs: StepCosts) -> float:
    """A request of 500 uncached of 2,500 prompt tokens, and 200 output tokens, by itself."""
    return costs.prefill_s(500, 2_000) + 200 * costs.decode_s(1, 2_600)


def profile_costs(profile: AcceleratorProfile) -> StepCosts:
    """A profile's step costs."""
    prefill, decode = profile.prefill, profile.decode
    repeated = decode.repeated_read_frac
    return StepCosts(
        prefill.base_s.value,
        prefill.per_token_s.value,
        prefill.per_token_per_1k_context_s.value / 1_000,
        decode.base_s.value,
        decode.per_request_s.value,
        decode.per_1k_context_tokens_s.value / 1_000,
        1.0 if repeated is None else repeated.value,
    )
