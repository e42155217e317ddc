"""The link's codec: valid messages survive, any other bytes give a ProtocolError, quickly."""

from __future__ import annotations

import random
import time

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.codec import (
    MAX_MESSAGE_BYTES,
    decode_coordinator_message,
    decode_worker_message,
    encode,
)
from hexgen_sglang.protocol.messages import (
    MAX_PREWARMED_TOKENS,
    TOKENS_IN_A_PART,
    Cancel,
    CoordinatorMessage,
    Features,
    Goodbye,
    Heartbeat,
    Hello,
    HelloWanted,
    Load,
    OrderingSet,
    PolicySettings,
    Prewarm,
    Rejected,
    Release,
    Reprioritise,
    RequestFinished,
    Retain,
    StageFinished,
    StepTimes,
    Welcome,
    WorkerMessage,
)

ALPHABET = "abcXYZ019._:/@+=-"
NAMES = st.text(ALPHABET, min_size=1, max_size=64)
WORKFLOW_IDS = st.text(ALPHABET, min_size=1, max_size=128)
VALID_TEXT = st.characters(exclude_categories=["Cs"])
TEXTS = st.text(VALID_TEXT, max_size=512)
SHORT_TEXTS = st.text(VALID_TEXT, max_size=64)
REQUEST_IDS = st.text(VALID_TEXT, min_size=1, max_size=128)
COUNTS = st.integers(0, 2**40)
DURATIONS_MS = st.floats(0, 604_800_000)
STEP_SECONDS = st.floats(0, 60)
TOKEN_SECONDS = st.floats(0, 1)

ORDERING_SETTINGS = st.dictionaries(NAMES, st.floats(allow_nan=False), max_size=64)
WORKER_MESSAGES = st.one_of(
    st.builds(
        Hello,
        link_version=st.just(1),
        worker_id=NAMES,
        incarnation=REQUEST_IDS,
        url=st.text(VALID_TEXT, min_size=1, max_size=500).map(lambda rest: "http://" + rest),
        model=TEXTS,
        hardware=SHORT_TEXTS,
        sglang_version=SHORT_TEXTS,
        plugin_version=SHORT_TEXTS,
        max_running_requests=COUNTS,
        kv_capacity_tokens=COUNTS,
        ordering=NAMES,
    ),
    st.builds(Load, COUNTS, COUNTS, COUNTS, COUNTS),
    st.builds(
        RequestFinished,
        request_id=REQUEST_IDS,
        workflow_id=st.none() | WORKFLOW_IDS,
        stage=st.none() | NAMES,
        prompt_tokens=COUNTS,
        cached_tokens=COUNTS,
        output_tokens=COUNTS,
        queue_ms=DURATIONS_MS,
        ttft_ms=DURATIONS_MS,
        e2e_ms=DURATIONS_MS,
        aborted=st.booleans(),
    ),
    st.builds(StageFinished, WORKFLOW_IDS, NAMES, COUNTS, COUNTS, DURATIONS_MS),
    st.builds(
        StepTimes,
        *[STEP_SECONDS, TOKEN_SECONDS, TOKEN_SECONDS],
        *[STEP_SECONDS, STEP_SECONDS, TOKEN_SECONDS],
        *[COUNTS, COUNTS],
    ),
    st.builds(Features, st.booleans(), st.booleans()),
    st.builds(OrderingSet, NAMES, ORDERING_SETTINGS, TEXTS),
    st.builds(Goodbye, TEXTS),
)
COORDINATOR_MESSAGES = st.one_of(
    st.builds(Welcome, st.just(1), NAMES, st.integers(50, 60_000)),
    st.just(Heartbeat()),
    st.just(HelloWanted()),
    st.builds(Rejected, TEXTS),
    st.builds(Reprioritise, WORKFLOW_IDS, st.none() | st.integers(1, 86_400_000), DURATIONS_MS),
    st.builds(Cancel, WORKFLOW_IDS, st.none()),
    st.builds(Cancel, st.none(), REQUEST_IDS),
    st.builds(
        PolicySettings,
        NAMES,
        ORDERING_SETTINGS,
    ),
    st.builds(Retain, WORKFLOW_IDS, DURATIONS_MS),
    st.builds(Release, WORKFLOW_IDS),
    st.builds(
        Prewarm,
        WORKFLOW_IDS,
        NAMES,
        DURATIONS_MS,
        st.integers(0, MAX_PREWARMED_TOKENS),
        st.integers(0, MAX_PREWARMED_TOKENS),
        st.binary(max_size=4 * TOKENS_IN_A_PART),
    ),
)
EITHER = st.one_of(
    WORKER_MESSAGES.map(lambda message: (message, decode_worker_message)),
    COORDINATOR_MESSAGES.map(lambda message: (message, decode_coordinator_message)),
)
WIRE_TYPES = [
    kind.__struct_config__.tag
    for union in (WorkerMessage, CoordinatorMessage)
    for kind in union.__args__
]
thoroughly = settings(max_examples=150, deadline=None)


def is_handled(data: bytes) -> bool:
    """Decode both ways; True when it was a message, and then it is one that can be sent."""
    is_message = False
    for decode in (decode_worker_message, decode_coordinator_message):
        try:
            message = decode(data)
        except ProtocolError:
            continue
        assert decode(encode(message)) == message
        is_message = True
    return is_message


def test_every_message_of_the_contract_is_generated_here():
    covered = set()

    @settings(max_examples=300, deadline=None, database=None)
    @given(pair=EITHER)
    def collect(pair):
        covered.add(type(pair[0]))

    collect()
    assert covered == {*WorkerMessage.__args__, *CoordinatorMessage.__args__}


@thoroughly
@given(pair=EITHER)
def test_a_message_survives_the_wire(pair):
    message, decode = pair
    data = encode(message)
    assert len(data) <= MAX_MESSAGE_BYTES
    assert decode(data) == message


@thoroughly
@given(pair=EITHER)
def test_every_truncated_or_lengthened_message_is_refused(pair):
    message, decode = pair
    data = encode(message)
    for end in range(len(data)) if len(data) < 200 else range(0, len(data), len(data) // 100):
        with pytest.raises(ProtocolError):
            decode(data[:end])
    for rest in (b"\x00", b"\xc0", data):
        with pytest.raises(ProtocolError):
            decode(data + rest)


@settings(max_examples=1000, deadline=None)
@given(data=st.binary(max_size=400))
@example(data=b"\x91" * MAX_MESSAGE_BYTES)
@example(data=b"\x81\xa1a" * (MAX_MESSAGE_BYTES // 3))
@example(data=b"\xdf\xff\xff\xff\xff")
@example(data=b"\xdd\xff\xff\xff\xff" + b"\xc0" * 1000)
@example(data=b"\xdb\xff\xff\xff\xff" + b"a" * 1000)
@example(data=b"\xd7\xff" + b"\xff" * 8)
@example(data=b"\x00" * (MAX_MESSAGE_BYTES + 1))
@example(data=b"x" * 5_000_000)
def test_any_bytes_are_a_message_or_a_protocol_error(data):
    is_handled(data)


OBJECTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(VALID_TEXT)
    | st.binary(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(VALID_TEXT) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=6,
)
FIELD_NAMES = sorted(
    {
        field.name
        for union in (WorkerMessage, CoordinatorMessage)
        for kind in union.__args__
        for field in msgspec.structs.fields(kind)
    }
)


@settings(max_examples=250, deadline=None)
@given(
    kind=st.sampled_from(WIRE_TYPES) | OBJECTS,
    fields=st.dictionaries(st.sampled_from(FIELD_NAMES), OBJECTS, max_size=6),
)
def test_any_msgpack_object_is_a_message_or_a_protocol_error(kind, fields):
    is_handled(msgspec.msgpack.encode({"type": kind, **fields}))
    is_handled(msgspec.msgpack.encode({**fields, "type": kind}))


@settings(max_examples=200, deadline=None)
@given(message=WORKER_MESSAGES | COORDINATOR_MESSAGES, data=st.data())
def test_one_wrong_field_is_named(message, data):
    fields = msgspec.to_builtins(message)
    name = data.draw(st.sampled_from(sorted(fields)))
    if name == "type":
        return
    decode = decode_worker_message
    if isinstance(message, CoordinatorMessage):
        decode = decode_coordinator_message
    with pytest.raises(ProtocolError, match=name):
        decode(msgspec.msgpack.encode({**fields, name: [[]]}))


def test_fifty_thousand_broken_messages_are_handled_in_bounded_time():
    """Bit flips, cuts, insertions and splices of real messages: close to valid, and hostile."""
    chance = random.Random(20261122)
    seeds = [
        encode(message)
        for message in (
            Hello(1, "w1", "i", "http://h:1", "m", "h", "0.5.23", "0.1", 8, 4096, "fcfs"),
            Load(1, 2, 3, 4),
            RequestFinished("r", "flow", None, 1, 2, 3, 0.0, 1.0, 2.0, False),
            StageFinished("flow", "draft", 1, 2, 3.0),
            Goodbye("bye"),
            Welcome(1, "c", 500),
            Reprioritise("flow", None, 1.0),
            PolicySettings("least_slack", {"a": 1.0, "b": 2.0}),
        )
    ]
    num_messages = 0
    slowest_s = 0.0
    for _ in range(50_000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(4):
                case 0 if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    del data[at : at + chance.randint(1, 5)]
                case 2:
                    data[at:at] = chance.randbytes(chance.randint(1, 5))
                case _:
                    data[at:] = chance.choice(seeds)[chance.randrange(10) :]
        started_s = time.thread_time()
        num_messages += is_handled(bytes(data))
        slowest_s = max(slowest_s, time.thread_time() - started_s)
    assert 0 < num_messages < 25_000  # both outcomes were exercised
    assert slowest_s < 1.0
