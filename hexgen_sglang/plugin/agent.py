"""The worker's agent: keeps SGLang's scheduler process in touch with the coordinator.

A daemon thread owns the connection; the scheduler thread only touches a deque and an
attribute, takes no lock and is never made to wait. Imports neither SGLang, torch nor zmq: what
connects it is passed in.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.plugin.registration import LinkState, Patience, Registration
from hexgen_sglang.protocol.codec import encode
from hexgen_sglang.protocol.messages import (
    Cancel,
    CoordinatorMessage,
    Features,
    Goodbye,
    Hello,
    Load,
    PolicySettings,
    Prewarm,
    Rejected,
    Release,
    Reprioritise,
    Retain,
    Welcome,
    WorkerMessage,
)
from hexgen_sglang.transport.incidents import IncidentCounter
from hexgen_sglang.transport.interface import WorkerEnd

log = logging.getLogger(__name__)

_TURN_S = 0.02  # a load or report waits at most this long; also what loads are coalesced over
_QUIET_TURN_S = 0.1  # the same when there was no news for a while, or nobody to tell it
_QUIET_AFTER_S = 1.0
_RETRY_S = 1.0  # after an error in the agent itself
_FAREWELL_S = 0.1  # for ZMQ's own thread to put a goodbye on the wire
_MAX_PER_TURN = 256  # messages, each direction
_COMMANDS = (Reprioritise, Cancel, PolicySettings, Retain, Release, Prewarm)


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """Counts since the start; read by metrics and health.

    Attributes:
        state: where the worker stands with its coordinator.
        rejection: reason of the last rejection; "" when there was none.
        num_reported: messages given to `report`.
        num_sent: of these, handed to the connection, invalid ones included.
        num_queued: of these, waiting for it.
        num_dropped: of these, pushed out by newer ones while there was no connection.
        num_invalid: messages, loads included, that could not be encoded (a defect of ours).
        num_commands_dropped: commands pushed out because nobody took them.
        num_unanswered: connections given up because no answer came over them.
        num_errors: errors in the agent itself, each followed by a new connection.
    """

    state: LinkState
    rejection: str
    num_reported: int
    num_sent: int
    num_queued: int
    num_dropped: int
    num_invalid: int
    num_commands_dropped: int
    num_unanswered: int
    num_errors: int


class WorkerAgent:
    """Registers this worker and keeps it registered, reports, and brings commands.

    `report_load`, `report` and `take_commands` belong to one thread (the scheduler's), cost a
    microsecond and never wait, whatever the coordinator does. A coordinator that is silent
    or gone is sought again for as long as the agent runs; reports wait for it, up to a bound.

    Args:
        connect: opens a new worker end; called at `start` and whenever a connection is
            worn out.
        hello: who this worker is.
        features: told after each welcome; None: nothing is.
        clock: monotonic seconds.
        patience: how long to wait for what.
        max_queued: reports and, apart from them, commands that are kept; at least 1.

    Raises:
        ProtocolError: `hello` is out of range.
    """

    def __init__(
        self,
        connect: Callable[[], WorkerEnd],
        hello: Hello,
        *,
        features: Features | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience: Patience | None = None,
        max_queued: int = 4096,
    ) -> None:
        encode(hello)
        self._connect = connect
        self._hello = hello
        self._features = features
        self._features_are_due = False
        self._clock = clock
        self._registration = Registration(patience or Patience(), clock())
        self._max_queued = max_queued
        self._end: WorkerEnd | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._goodbye = Goodbye(reason="")
        # Written by the scheduler's thread, read by ours:
        self._load = Load(num_running=0, num_waiting=0, num_waiting_tokens=0, num_kv_tokens_used=0)
        self._reports: deque[WorkerMessage] = deque(maxlen=max_queued)
        self._num_reported = 0
        # Written by our thread:
        self._commands: deque[CoordinatorMessage] = deque(maxlen=max_queued)
        self._in_hand: WorkerMessage | None = None
        self._sent_load: Load | None = None
        self._sent_load_s = 0.0
        self._last_news_s = 0.0
        self._num_taken = 0
        self._num_sent = 0
        self._num_commands_dropped = 0
        self._num_errors = 0
        self._invalid = IncidentCounter(log, "discarded what cannot be sent", clock)
        self._unanswered = IncidentCounter(log, "no answer", clock)
        self._rejected = IncidentCounter(log, "rejection of this worker", clock)

    def start(self) -> None:
        """Open the connection and begin to say hello. Does not wait for an answer.

        Raises:
            ConfigError: the endpoint or its keys are wrong.
        """
        self._end = self._connect()
        self._thread = threading.Thread(target=self._run, name="hexgen-agent", daemon=True)
        self._thread.start()

    def stop(self, reason: str, timeout_s: float = 1.0) -> None:
        """Say goodbye and end the thread; waits at most `timeout_s`. May be called again."""
        if self._thread is None or self._stopping.is_set():
            return
        self._goodbye = Goodbye(reason=reason[:512])
        self._stopping.set()
        self._thread.join(timeout_s)

    def report_load(self, load: Load) -> None:
        """Have the coordinator know this load; only the newest is sent."""
        self._load = load

    def report(self, message: WorkerMessage) -> None:
        """Send after those before it; when the queue is full the oldest is dropped."""
        self._num_reported += 1
        self._reports.append(message)

    def take_commands(self) -> list[CoordinatorMessage]:
        """What the coordinator asked for since the last call, oldest first."""
        if not self._commands:
            return []
        return [self._commands.popleft() for _ in range(len(self._commands))]

    def status(self) -> AgentStatus:
        """Counts as of now; from another thread they may differ by one among themselves."""
        num_in_deque = len(self._reports)
        is_running = self._thread is not None and self._thread.is_alive()
        return AgentStatus(
            state=self._registration.state if is_running else LinkState.STOPPED,
            rejection=self._registration.rejection,
            num_reported=self._num_reported,
            num_sent=self._num_sent,
            num_queued=num_in_deque + (self._in_hand is not None),
            num_dropped=max(0, self._num_reported - self._num_taken - num_in_deque),
            num_invalid=self._invalid.count,
            num_commands_dropped=self._num_commands_dropped,
            num_unanswered=self._unanswered.count,
            num_errors=self._num_errors,
        )

    def _run(self) -> None:
        """Body of the thread."""
        while not self._stopping.is_set():
            try:
                end = self._end or self._reopen()
                self._turn(end)
            except Exception:
                # The engine must go on serving without us: count, log, begin anew.
                self._num_errors += 1
                log.exception("link: the agent failed; opening a new connection")
                self._close()
                self._stopping.wait(_RETRY_S)
        self._say_goodbye()
        self._close()

    def _turn(self, end: WorkerEnd) -> None:
        """Receive what came, then send what is due."""
        self._receive(end)
        now_s = self._clock()
        registration = self._registration
        if registration.is_silent(now_s):
            log.warning("link: the coordinator is silent; saying hello again")
        if registration.hello_is_due(now_s) and end.send(self._hello):
            registration.hello_was_sent(now_s)
        if registration.state is LinkState.WELCOMED:
            self._send_features(end)
            self._send_load(end, now_s)
            self._send_reports(end, now_s)
        elif registration.reopen_is_due(now_s):
            self._unanswered.add("the coordinator", "is it running? are endpoint and keys right?")
            self._close()

    def _receive(self, end: WorkerEnd) -> None:
        timeout_s = self._turn_s()
        for _ in range(_MAX_PER_TURN):
            message = end.receive(timeout_s)
            if message is None:
                return
            timeout_s = 0.0
            self._hear(message)

    def _turn_s(self) -> float:
        """How long to wait for messages before looking at the scheduler's news again.

        Waking up costs some 0.1 ms of CPU, which many idle workers on one machine feel.
        """
        if self._registration.state is not LinkState.WELCOMED:
            return _QUIET_TURN_S
        if self._clock() - self._last_news_s < _QUIET_AFTER_S:
            return _TURN_S
        return min(_QUIET_TURN_S, self._registration.heartbeat_s / 2)

    def _hear(self, message: CoordinatorMessage) -> None:
        before = self._registration.state
        self._registration.heard(message, self._clock())
        if isinstance(message, _COMMANDS):
            self._num_commands_dropped += len(self._commands) == self._max_queued
            self._commands.append(message)
        elif isinstance(message, Welcome):
            self._features_are_due = self._features is not None
        elif isinstance(message, Rejected):
            self._rejected.add("the coordinator", message.reason)
        after = self._registration.state
        if after is LinkState.WELCOMED and before is not after:
            self._sent_load = None
            log.info("link: registered as %s", self._hello.worker_id)

    def _send_features(self, end: WorkerEnd) -> None:
        """Say after a welcome what this worker does beyond the first version of the link."""
        if self._features_are_due and self._features is not None:
            self._features_are_due = not self._send(end, self._features)

    def _send_load(self, end: WorkerEnd, now_s: float) -> None:
        """The newest load, when it is news or a heartbeat is due (twice as often as asked)."""
        load = self._load
        waited_s = now_s - self._sent_load_s
        is_news = load != self._sent_load and waited_s >= _TURN_S
        if (is_news or waited_s >= self._registration.heartbeat_s / 2) and self._send(end, load):
            self._last_news_s = now_s if is_news else self._last_news_s
            self._sent_load = load
            self._sent_load_s = now_s

    def _send_reports(self, end: WorkerEnd, now_s: float) -> None:
        """Queued reports in order, until the connection takes no more."""
        for _ in range(_MAX_PER_TURN):
            if self._in_hand is None:
                if not self._reports:
                    return
                # Out of the deque first: there the scheduler's thread may push it out.
                self._in_hand = self._reports.popleft()
                self._num_taken += 1
            if not self._send(end, self._in_hand):
                return
            self._in_hand = None
            self._num_sent += 1
            self._last_news_s = now_s

    def _send(self, end: WorkerEnd, message: WorkerMessage) -> bool:
        """True when the message is done with: sent, or impossible to send."""
        try:
            return end.send(message)
        except ProtocolError as error:
            self._invalid.add(type(message).__name__, error)
            return True

    def _reopen(self) -> WorkerEnd:
        end = self._end = self._connect()
        self._registration.was_reopened(self._clock())
        return end

    def _close(self) -> None:
        if self._end is not None:
            self._end.close()
            self._end = None

    def _say_goodbye(self) -> None:
        if self._end is None or self._registration.state is not LinkState.WELCOMED:
            return
        self._send_reports(self._end, self._clock())
        if self._send(self._end, self._goodbye):
            self._end.receive(_FAREWELL_S)
