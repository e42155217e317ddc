"""What is kept of dispatch decisions, so that people can be told why: see `explain`.

Written by the dispatcher, in the coordinator and in the simulator, a few microseconds a
decision. Nothing decides by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.dispatch import Price

# Of one workflow; the oldest go first. The tracker bounds the workflows.
MAX_DECISIONS = 128


@dataclass(slots=True, eq=False)
class Decision:
    """One decision about one request, or several in a row to wait for the same worker.

    Attributes:
        view: what the policy knew of the request.
        picked: worker id; None: to wait.
        first_s, last_s: instants of the first and the last of them.
        num_times: how many.
        num_candidates: workers that the policy compared.
        prices: of the last of them: the winner's and the runner-up's; () when the policy told
            none. A decision to wait names the worker that it waits for first.
    """

    view: RequestView
    picked: str | None
    first_s: float
    last_s: float
    num_times: int
    num_candidates: int
    prices: tuple[Price, ...]

    def waits_for(self) -> str | None:
        """The worker that would have been best; None for a decision that picked one."""
        return self.prices[0].worker_id if self.picked is None and self.prices else None


class DecisionLog:
    """The newest decisions of one workflow.

    Attributes:
        num_forgotten: older ones that were dropped.
    """

    __slots__ = ("_rows", "num_forgotten")

    def __init__(self) -> None:
        self._rows: deque[Decision] = deque()
        self.num_forgotten = 0

    def add(
        self,
        last: Decision | None,
        view: RequestView,
        picked: str | None,
        now_s: float,
        num_candidates: int,
        prices: tuple[Price, ...],
    ) -> Decision:
        """Enter a decision; returns its row, to be passed as `last` with the request's next.

        A decision to wait for the same worker as the one before goes into the same row.
        """
        if picked is None and last is not None and last.picked is None:
            wanted = prices[0].worker_id if prices else None
            if wanted == last.waits_for():
                last.num_times += 1
                last.last_s, last.num_candidates, last.prices = now_s, num_candidates, prices
                return last
        row = Decision(view, picked, now_s, now_s, 1, num_candidates, prices)
        self._rows.append(row)
        if len(self._rows) > MAX_DECISIONS:
            self._rows.popleft()
            self.num_forgotten += 1
        return row

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
