"""Counting what went wrong with a peer, and logging it without flooding the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LOG_INTERVAL_S = 60.0
_MAX_PEERS = 1024


class IncidentCounter:
    """Counts incidents of one kind; logs the first of each peer in any minute.

    Args:
        log: logger of the end that noticed them.
        what: what happened, e.g. "skipped a malformed message".
        clock: monotonic seconds.

    Attributes:
        count: incidents so far, logged or not.
    """

    def __init__(
        self, log: logging.Logger, what: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._what = what
        self._clock = clock
        self._logged_s: dict[str, float] = {}
        self.count = 0

    def add(self, peer: str, reason: object) -> None:
        """One more incident with `peer`, because of `reason`."""
        self.count += 1
        now_s = self._clock()
        if now_s - self._logged_s.get(peer, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
            return
        if len(self._logged_s) >= _MAX_PEERS:  # peers come and go: forget them all, stay bounded
            self._logged_s.clear()
        self._logged_s[peer] = now_s
        self._log.warning("link: %s from %s: %s", self._what, peer, reason)
