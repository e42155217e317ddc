"""Which requests are taken back from a worker, and which stay."""

from __future__ import annotations

from collections.abc import Callable

from hexgen_sglang.coordinator.live_request import Attempt, LiveRequest
from hexgen_sglang.coordinator.movement import DRAIN, MOST_MOVES, SLOW, Mover
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.core.worker import WorkerState
from hexgen_sglang.protocol.messages import Load

MakeRequest = Callable[..., LiveRequest]
MakeWorker = Callable[..., Worker]
MakeAttempt = Callable[..., Attempt]


class Moves:
    """A mover over two workers; what it takes back, by rid."""

    def __init__(self, make_worker: MakeWorker, overdue: float = 3.0) -> None:
        self.slow, self.other = make_worker("slow"), make_worker("other")
        self.taken: list[tuple[str, str]] = []
        self.mover = Mover(
            lambda: [self.slow, self.other],
            RoomRules(2, 10_000, 4, 3.0),
            overdue,
            lambda attempt, reason: self.taken.append((attempt.rid, reason)),
        )
        self.num = 0

    def send(
        self, make_request: MakeRequest, make_attempt: MakeAttempt, at_s: float, **fields: object
    ) -> Attempt:
        """A request goes to the slow worker."""
        self.num += 1
        rid = f"r{self.num}"
        attempt = make_attempt(
            self.slow, make_request(rid, lane="m"), rid, dispatched_s=at_s, **fields
        )
        self.slow.start(attempt)
        return attempt


def waiting(count: int) -> Load:
    return Load(num_running=4, num_waiting=count, num_waiting_tokens=10, num_kv_tokens_used=0)


def test_a_draining_worker_gives_back_what_it_says_that_waits(
    make_worker: MakeWorker, make_request: MakeRequest, make_attempt: MakeAttempt
) -> None:
    moves = Moves(make_worker)
    for number in range(4):
        moves.send(make_request, make_attempt, float(number))
    moves.slow.take_load(waiting(1), 2.5)  # and the last one was sent after that report
    moves.mover.drain(moves.slow, 4.0)
    assert moves.taken == [("r4", DRAIN), ("r3", DRAIN)]


def test_without_reports_only_what_exceeds_its_batch_is_sure_to_wait(
    make_worker: MakeWorker, make_request: MakeRequest, make_attempt: MakeAttempt
) -> None:
    moves = Moves(make_worker)
    for number in range(6):
        moves.send(make_request, make_attempt, float(number))
    moves.slow.state = WorkerState.DRAINING
    moves.mover.look(7.0)
    assert moves.taken == [("r6", DRAIN), ("r5", DRAIN)]


def test_overdue_is_a_multiple_of_what_was_predicted(
    make_worker: MakeWorker, make_request: MakeRequest, make_attempt: MakeAttempt
) -> None:
    moves = Moves(make_worker)
    moves.send(make_request, make_attempt, 0.0, expected_first_s=2.0)
    moves.send(make_request, make_attempt, 0.0, expected_first_s=9.0)
    moves.send(make_request, make_attempt, 0.0)  # nobody predicted anything
    moves.send(make_request, make_attempt, 0.0, expected_first_s=2.0, first_byte_s=1.0)
    moves.slow.take_load(waiting(9), 6.0)
    moves.mover.look(6.0)
    assert moves.taken == []
    moves.mover.look(6.5)  # too soon after the last look
    assert moves.taken == []
    moves.mover.look(7.1)
    assert moves.taken == [("r1", SLOW)]


def test_nothing_is_slow_where_that_is_not_asked_for_or_within_two_seconds(
    make_worker: MakeWorker, make_request: MakeRequest, make_attempt: MakeAttempt
) -> None:
    for overdue, at_s in ((0.0, 99.0), (3.0, 1.9)):
        moves = Moves(make_worker, overdue)
        moves.send(make_request, make_attempt, 0.0, expected_first_s=0.01)
        moves.slow.take_load(waiting(1), at_s)
        moves.mover.look(at_s)
        assert moves.taken == []


def test_it_stays_where_no_other_worker_has_room_and_after_enough_moves(
    make_worker: MakeWorker, make_request: MakeRequest, make_attempt: MakeAttempt
) -> None:
    moves = Moves(make_worker)
    attempt = moves.send(make_request, make_attempt, 0.0)
    moves.slow.take_load(waiting(1), 0.5)
    moves.other.state = WorkerState.UNREACHABLE
    moves.mover.drain(moves.slow, 1.0)
    moves.other.state = WorkerState.READY
    moves.other.models = ("another",)
    moves.mover.drain(moves.slow, 1.0)
    moves.other.models = ("m",)
    attempt.request.failed_on = {"other"}
    moves.mover.drain(moves.slow, 1.0)
    attempt.request.failed_on = set()
    attempt.request.num_moves = MOST_MOVES
    moves.mover.drain(moves.slow, 1.0)
    assert moves.taken == []
    attempt.request.num_moves = MOST_MOVES - 1
    moves.mover.drain(moves.slow, 1.0)
    assert moves.taken == [("r1", DRAIN)]
