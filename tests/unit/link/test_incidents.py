"""Counting everything, logging little."""

from __future__ import annotations

import logging

from hexgen_sglang.transport.incidents import IncidentCounter

log = logging.getLogger("incidents-under-test")


def test_one_line_a_peer_and_minute(caplog):
    now_s = 0.0
    counter = IncidentCounter(log, "skipped a message", lambda: now_s)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for peer in ("a", "b"):
                counter.add(peer, "bad type")
        now_s = 59.9
        counter.add("a", "bad type")
        assert len(caplog.records) == 2
        now_s = 60.0
        counter.add("a", "bad length")
    assert counter.count == 8
    assert caplog.messages[-1] == "link: skipped a message from a: bad length"
    assert len(caplog.records) == 3


def test_memory_stays_bounded_when_peers_come_and_go(caplog):
    counter = IncidentCounter(log, "skipped a message", lambda: 0.0)
    for number in range(10_000):
        counter.add(str(number), "bad type")
    assert counter.count == 10_000
    assert len(counter._logged_s) <= 1024
