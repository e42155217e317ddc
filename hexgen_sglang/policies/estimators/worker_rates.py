"""How fast each worker is, from the timings of requests that ended there."""

from __future__ import annotations

from dataclasses import dataclass, field

from hexgen_sglang.policies.estimators.averages import BoundedTable, DecayedRate, RunningMean

_MIN_REQUESTS = 8
# What no worker reaches, time-scaled emulation included: beyond it a report is wrong.
_MAX_PREFILL_TOKENS_PER_S = 1e7
_MAX_DECODE_TOKENS_PER_S = 1e4
_MAX_STALL = 20.0  # a wrong report must not make a worker look useless


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of one worker; None where nothing was measured or stated.

    Attributes:
        prefill_tokens_per_s: uncached prompt tokens per second of prefill.
        decode_tokens_per_s: output tokens per second of one request in the usual batch.
        usual_batch: mean requests in flight when decode was measured; at least 1.
        tokens_per_s: prompt plus output tokens per busy second of the worker.
        decode_stall: time between tokens / the decode step alone; at least 1.
    """

    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    usual_batch: float = 1.0
    tokens_per_s: float | None = None
    decode_stall: float = 1.0


@dataclass(slots=True)
class _Measured:
    """Sums of one worker."""

    prefill: DecayedRate = field(default_factory=DecayedRate)
    decode: DecayedRate = field(default_factory=DecayedRate)
    batch: RunningMean = field(default_factory=RunningMean)
    throughput: DecayedRate = field(default_factory=DecayedRate)
    stall: RunningMean = field(default_factory=RunningMean)
    stated: Rates = field(default_factory=Rates)


class WorkerRates:
    """Rates by worker id.

    Args:
        max_workers: remembered at most; the longest unheard of goes first.
    """

    def __init__(self, max_workers: int = 4_096) -> None:
        self._workers: BoundedTable[str, _Measured] = BoundedTable(_Measured, max_workers)

    def state(
        self, worker_id: str, prefill_tokens_per_s: float | None, decode_tokens_per_s: float | None
    ) -> None:
        """Starting values from a profile, used until the first measurement."""
        self._workers.at(worker_id).stated = Rates(prefill_tokens_per_s, decode_tokens_per_s)

    def note_prefill(self, worker_id: str, num_tokens: int, seconds: float) -> None:
        """`num_tokens` uncached prompt tokens took `seconds` from admission to first token."""
        if num_tokens <= 0 or seconds <= 0:
            return
        seconds = max(seconds, num_tokens / _MAX_PREFILL_TOKENS_PER_S)
        self._workers.at(worker_id).prefill.add(num_tokens, seconds)

    def note_decode(self, worker_id: str, num_tokens: int, seconds: float, batch: int) -> None:
        """One request's `num_tokens` after the first took `seconds` with `batch` in flight."""
        if num_tokens <= 0 or seconds <= 0:
            return
        measured = self._workers.at(worker_id)
        measured.decode.add(num_tokens, max(seconds, num_tokens / _MAX_DECODE_TOKENS_PER_S))
        measured.batch.add(max(1, batch))

    def note_stall(self, worker_id: str, observed_s: float, alone_s: float) -> None:
        """A request's decode took `observed_s`; its steps alone would take `alone_s`."""
        if observed_s > 0 and alone_s > 0:
            ratio = min(_MAX_STALL, max(1.0, observed_s / alone_s))
            self._workers.at(worker_id).stall.add(ratio)

    def note_throughput(self, worker_id: str, num_tokens: int, busy_s: float) -> None:
        """`num_tokens` of all requests were finished in `busy_s` of having any in flight."""
        self._workers.at(worker_id).throughput.add(num_tokens, busy_s)

    def of(self, worker_id: str) -> Rates:
        """What is known: measured, else stated, else None."""
        measured = self._workers.get(worker_id)
        if measured is None:
            return Rates()
        return Rates(
            measured.prefill.per_second or measured.stated.prefill_tokens_per_s,
            measured.decode.per_second or measured.stated.decode_tokens_per_s,
            max(1.0, measured.batch.mean),
            measured.throughput.per_second,
            max(1.0, measured.stall.mean),
        )

    def is_measured(self, worker_id: str) -> bool:
        """Whether prefill and decode rest on enough ended requests to be believed."""
        measured = self._workers.get(worker_id)
        return measured is not None and (
            min(measured.prefill.count, measured.decode.count) >= _MIN_REQUESTS
        )

    def rename(self, old_id: str, new_id: str) -> None:
        """The same worker under another id; what was known under that one is replaced."""
        self._workers.move(old_id, new_id)

    def forget(self, worker_id: str) -> None:
        """The worker is gone for good, or another machine took its name."""
        self._workers.drop(lambda known: known == worker_id)
