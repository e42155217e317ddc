"""What the steps of an emulated run add up to, and whether the run may be believed.

In the scheduler process. Times go in as real seconds and come out as emulated ones (real times
the time scale), but for CPU time, which is always real.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

MAX_OVERHEAD_FRAC = 0.10
MAX_DRIFT_FRAC = 0.01
# Below this much emulated time a single hiccup of the host would decide.
JUDGED_AFTER_S = 5.0
_NUM_LATENESSES = 4096


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step that has ended; seconds are emulated ones, but for `cpu_s`.

    Attributes:
        start_s: on the emulated timeline, since the accelerator came up.
        kind: "prefill", "decode" or "mixed".
        num_requests: in the batch.
        extend_tokens: prompt tokens computed.
        context_tokens: cached prefixes (prefill), contexts that the decoding requests read.
        predicted_s: by the profile, jitter included.
        slept_s: from its start until SGLang got its results.
        overhead_s: the accelerator stood still before it although SGLang had work.
        cpu_s: CPU time of the scheduler since it launched the step before.
    """

    start_s: float
    kind: str
    num_requests: int
    extend_tokens: int
    context_tokens: int
    predicted_s: float
    slept_s: float
    overhead_s: float
    cpu_s: float


class StepAccounting:
    """Sums over all steps since the start.

    `overhead_frac` is standstill caused by the host's CPU, relative to predicted time.
    `drift_frac` is what remains unexplained: over each busy period, real time that was neither
    predicted nor overhead. `late_frac` is how late SGLang learned of the ends of steps, on
    average over the predicted time; it does not add up, since no later step moves.

    Args:
        time_scale: emulated seconds in a real one.
    """

    def __init__(self, time_scale: float) -> None:
        self._scale = time_scale
        self._steps = {"prefill": 0, "decode": 0, "mixed": 0}
        self._predicted = {"prefill": 0.0, "decode": 0.0, "mixed": 0.0}
        self._requests = 0
        self._extend_tokens = 0
        self._overhead_s = 0.0
        self._late_s = 0.0
        self._cpu_s = 0.0
        self._num_cpu_steps = 0
        self._latenesses: deque[float] = deque(maxlen=_NUM_LATENESSES)
        self._closed_drift_s = 0.0
        self._period: _BusyPeriod | None = None

    @property
    def num_steps(self) -> int:
        return sum(self._steps.values())

    def add(self, record: StepRecord, begins_busy_period: bool) -> None:
        """A step has ended."""
        self._steps[record.kind] += 1
        self._predicted[record.kind] += record.predicted_s
        self._requests += record.num_requests
        self._extend_tokens += record.extend_tokens
        self._overhead_s += record.overhead_s
        late_s = record.slept_s - record.predicted_s
        self._late_s += late_s
        self._latenesses.append(late_s)
        if not begins_busy_period:
            self._cpu_s += record.cpu_s
            self._num_cpu_steps += 1
        end_s = record.start_s + record.slept_s
        if begins_busy_period or self._period is None:
            self._close_period()
            self._period = _BusyPeriod(record.start_s, record.predicted_s, end_s)
        else:
            self._period.explained_s += record.predicted_s + record.overhead_s
            self._period.end_s = end_s

    def _close_period(self) -> None:
        if self._period is not None:
            self._closed_drift_s += self._period.drift_s

    def summary(self) -> dict[str, Any]:
        """The sums as plain JSON data; `valid` is None until enough was run to judge."""
        predicted_s = sum(self._predicted.values())
        drift_s = self._closed_drift_s + (self._period.drift_s if self._period else 0.0)
        share = 1 / predicted_s if predicted_s > 0 else 0.0
        ordered = sorted(self._latenesses)
        summary: dict[str, Any] = {
            "time_scale": self._scale,
            "num_steps": dict(self._steps),
            "predicted_s": {kind: round(s, 6) for kind, s in self._predicted.items()},
            "prompt_tokens_computed": self._extend_tokens,
            "mean_batch": round(self._requests / max(self.num_steps, 1), 3),
            "overhead_s": round(self._overhead_s, 6),
            "overhead_frac": round(self._overhead_s * share, 6),
            "drift_s": round(drift_s, 6),
            "drift_frac": round(drift_s * share, 6),
            "late_frac": round(self._late_s * share, 6),
            "late_p50_s": _quantile(ordered, 0.5),
            "late_p99_s": _quantile(ordered, 0.99),
            "cpu_per_step_s": round(self._cpu_s / max(self._num_cpu_steps, 1), 6),
        }
        reasons = _objections(summary)
        summary["valid"] = None if predicted_s < JUDGED_AFTER_S else not reasons
        summary["invalid_because"] = reasons if summary["valid"] is False else []
        return summary


@dataclass(slots=True)
class _BusyPeriod:
    """Steps without idle time between them: since when, what explains it, until when."""

    start_s: float
    explained_s: float
    end_s: float

    @property
    def drift_s(self) -> float:
        return self.end_s - self.start_s - self.explained_s


def _objections(summary: dict[str, Any]) -> list[str]:
    """Why the run may not be believed."""
    return [
        f"{name}={summary[name]}: must be at most {limit}"
        for name, limit in (("overhead_frac", MAX_OVERHEAD_FRAC), ("drift_frac", MAX_DRIFT_FRAC))
        if abs(summary[name]) > limit
    ]


def _quantile(ordered: list[float], q: float) -> float:
    return round(ordered[int(q * (len(ordered) - 1))], 6) if ordered else 0.0
