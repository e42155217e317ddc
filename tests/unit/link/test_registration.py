"""When a worker says hello, over a clock that the test turns."""

from __future__ import annotations

import pytest

from hexgen_sglang.plugin.registration import LinkState, Patience, Registration
from hexgen_sglang.protocol.messages import Heartbeat, HelloWanted, Rejected, Welcome

WELCOME = Welcome(link_version=1, coordinator_id="c", heartbeat_ms=1000)


@pytest.fixture
def patience():
    return Patience(
        first_hello_s=0.25, longest_hello_s=2.0, rejected_s=5.0, missed_heartbeats=3, reopen_s=15.0
    )


def hello_instants(registration, until_s, step_s=0.05):
    """Instants at which hellos go out when every one can be handed over."""
    instants = []
    for step in range(round(until_s / step_s)):
        now_s = step * step_s
        if registration.hello_is_due(now_s):
            registration.hello_was_sent(now_s)
            instants.append(round(now_s, 3))
    return instants


def test_hellos_back_off_up_to_a_cap(patience):
    instants = hello_instants(Registration(patience, 0.0), until_s=10.0)
    assert instants == [0.0, 0.25, 0.75, 1.75, 3.75, 5.75, 7.75, 9.75]


def test_without_a_connection_the_first_hello_stays_due(patience):
    registration = Registration(patience, 0.0)
    assert registration.hello_is_due(0.0)
    assert registration.hello_is_due(9.0)


def test_a_welcome_ends_the_hellos_and_sets_the_heartbeat(patience):
    registration = Registration(patience, 0.0)
    registration.hello_was_sent(0.0)
    registration.heard(Welcome(1, "c", 250), 0.1)
    assert registration.state is LinkState.WELCOMED
    assert registration.heartbeat_s == 0.25
    assert not registration.hello_is_due(100.0)


def test_silence_is_noticed_once_and_leads_to_hellos(patience):
    registration = Registration(patience, 0.0)
    registration.heard(WELCOME, 0.0)
    registration.heard(Heartbeat(), 2.0)
    assert not registration.is_silent(5.0)
    assert registration.is_silent(5.01)
    assert not registration.is_silent(5.02)
    assert registration.state is LinkState.SEEKING
    assert registration.hello_is_due(5.02)


def test_any_message_is_a_sign_of_life_but_only_a_welcome_registers(patience):
    registration = Registration(patience, 0.0)
    registration.heard(Heartbeat(), 1.0)
    assert registration.state is LinkState.SEEKING


def test_a_restarted_coordinator_gets_one_hello_for_many_requests_of_it(patience):
    registration = Registration(patience, 0.0)
    registration.heard(WELCOME, 0.0)
    sent = 0
    for _ in range(5):
        registration.heard(HelloWanted(), 1.0)
        if registration.hello_is_due(1.0):
            registration.hello_was_sent(1.0)
            sent += 1
    assert sent == 1
    assert registration.hello_is_due(1.25)


def test_a_rejected_worker_tries_again_slowly_and_can_be_welcomed_later(patience):
    registration = Registration(patience, 0.0)
    registration.hello_was_sent(0.0)
    registration.heard(Rejected(reason="id in use"), 0.1)
    assert registration.state is LinkState.REJECTED
    assert registration.rejection == "id in use"
    assert not registration.hello_is_due(5.0)
    assert registration.hello_is_due(5.1)
    registration.hello_was_sent(5.1)
    assert not registration.hello_is_due(10.0)
    registration.heard(WELCOME, 10.0)
    assert registration.state is LinkState.WELCOMED


def test_only_an_unregistered_worker_gives_a_silent_connection_up(patience):
    registration = Registration(patience, 0.0)
    assert not registration.reopen_is_due(14.9)
    assert registration.reopen_is_due(15.0)
    registration.was_reopened(15.0)
    assert registration.hello_is_due(15.0)
    assert not registration.reopen_is_due(29.9)
    registration.heard(WELCOME, 29.9)
    assert not registration.reopen_is_due(1000.0)
    registration.heard(Rejected(reason="no"), 1000.0)
    assert not registration.reopen_is_due(1014.0)
