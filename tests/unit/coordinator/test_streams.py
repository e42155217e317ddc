"""Cutting event streams and counting tokens in them."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexgen_sglang.coordinator import sse
from hexgen_sglang.coordinator.usage import StreamUsage, Usage, usage_of_answer
from hexgen_sglang.core.errors import ProtocolError


@given(
    events=st.lists(
        st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b""))
    ),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    newline=st.sampled_from([b"\n\n", b"\r\n\r\n"]),
)
def test_events_are_whole_and_nothing_is_lost_wherever_chunks_end(
    events: list[bytes], cuts: list[int], newline: bytes
) -> None:
    stream = b"".join(b"data: " + event + newline for event in events)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    splitter = sse.EventSplitter()
    got = [
        event
        for start, end in itertools.pairwise(edges)
        for event in splitter.feed(stream[start:end])
    ]
    assert got == [b"data: " + event + newline for event in events]
    assert splitter.rest == b""


def test_an_endless_event_is_an_error() -> None:
    splitter = sse.EventSplitter(max_event_bytes=100)
    splitter.feed(b"data: " + b"x" * 90)
    with pytest.raises(ProtocolError, match="event of 106 bytes: must be at most 100"):
        splitter.feed(b"x" * 10)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'data: {"a":1}\n\n', b'{"a":1}'),
        (b"event: x\ndata: {}\n\n", b"{}"),
        (b"data: [DONE]\n\n", None),
        (b": ping\n\n", None),
    ],
)
def test_payload_of_an_event(event: bytes, data: bytes | None) -> None:
    assert sse.payload(event) == data


def event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def test_the_added_usage_event_is_counted_and_hidden() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    stream = StreamUsage("/v1/completions", hides_usage=True)
    assert stream.take(event({"choices": [{"text": "a"}], "usage": None}))
    assert stream.take(event({"choices": [], "sglext": {}, "usage": None}))
    assert not stream.take(event({"choices": [], "usage": usage}))
    assert stream.take(b"data: [DONE]\n\n")
    assert stream.usage == Usage(7, 3, None)


def test_a_usage_event_that_was_asked_for_is_shown() -> None:
    stream = StreamUsage("/v1/completions", hides_usage=False)
    assert stream.take(event({"choices": [], "usage": {"prompt_tokens": 1}}))


def test_generate_streams_count_the_last_event_of_each_answer() -> None:
    stream = StreamUsage("/generate", hides_usage=False)
    for index, length, finish in [(0, 1, None), (1, 1, None), (0, 2, "stop"), (1, 5, "length")]:
        meta = {"prompt_tokens": 10, "completion_tokens": length, "cached_tokens": 4}
        reason = None if finish is None else {"type": finish}
        assert stream.take(event({"index": index, "meta_info": {**meta, "finish_reason": reason}}))
    assert stream.usage == Usage(20, 7, 8)


def test_a_generate_stream_cut_short_counts_what_came() -> None:
    stream = StreamUsage("/generate", hides_usage=False)
    meta = {"prompt_tokens": 10, "completion_tokens": 2, "finish_reason": None}
    stream.take(event({"meta_info": meta}))
    assert stream.usage == Usage(10, 2, None)


@pytest.mark.parametrize(
    ("route", "body", "usage"),
    [
        (
            "/v1/chat/completions",
            {"usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}},
            Usage(5, 2, None),
        ),
        (
            "/v1/completions",
            {"usage": {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}},
            Usage(5, 0, 3),
        ),
        ("/v1/completions", {"choices": []}, None),
        ("/v1/completions", {"usage": "free"}, None),
        (
            "/generate",
            [
                {"meta_info": {"prompt_tokens": 5, "completion_tokens": 2, "cached_tokens": 0}},
                {"meta_info": {"prompt_tokens": 6, "completion_tokens": 3, "cached_tokens": 4}},
            ],
            Usage(11, 5, 4),
        ),
        ("/generate", {"text": "no meta"}, None),
    ],
)
def test_usage_of_whole_answers(route: str, body: object, usage: Usage | None) -> None:
    assert usage_of_answer(route, msgspec.json.encode(body)) == usage


def test_an_answer_that_is_not_json_has_no_usage() -> None:
    assert usage_of_answer("/generate", b"\xff<html>") is None
