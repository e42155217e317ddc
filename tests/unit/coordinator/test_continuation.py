"""A stream cut anywhere, any number of times, reaches the client as if it never was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.coordinator.continuation import StreamPosition
from hexgen_sglang.coordinator.incoming import read_request
from hexgen_sglang.core.errors import ProtocolError

PROMPT = [5, 7, 11]


class Engine:
    """An engine whose next token depends on all before it; a token's text is "<id>"."""

    def __init__(self, rid: str) -> None:
        self.rid = rid

    def tokens(self, ids: list[int], count: int) -> list[int]:
        said: list[int] = []
        for _ in range(count):
            said.append((sum([*ids, *said]) * 31 + len([*ids, *said])) % 97)
        return said

    def read(self, text: str) -> list[int]:
        return [int(piece) for piece in text.replace(">", "").split("<")[1:]]

    def write(self, ids: list[int]) -> str:
        return "".join(f"<{item}>" for item in ids)

    def generate(self, body: dict[str, Any], every: int) -> list[bytes]:
        ids = body.get("input_ids") or self.read(body["text"])
        limit = body["sampling_params"]["max_new_tokens"]
        said = self.tokens(ids, limit)
        ends = [*range(every, limit, every), limit]
        rows = [
            {
                "text": self.write(said[:end]),
                "output_ids": said[:end],
                "meta_info": {
                    "id": self.rid,
                    "prompt_tokens": len(ids),
                    "completion_tokens": end,
                    "finish_reason": {"type": "length", "length": limit} if end == limit else None,
                },
            }
            for end in ends
        ]
        return [*map(event, rows), b"data: [DONE]\n\n"]

    def openai(self, body: dict[str, Any], is_chat: bool) -> list[bytes]:
        head = {"id": self.rid, "created": len(self.rid)}
        if is_chat:
            text = "".join(row["content"] for row in body["messages"])
        else:
            text = body["prompt"] if isinstance(body["prompt"], str) else self.write(body["prompt"])
        ids = self.read(text)
        limit = body["max_tokens"]
        said = self.tokens(ids, limit)
        rows: list[dict[str, Any]] = []
        if is_chat:
            delta = {"role": "assistant", "content": ""}
            rows = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}]
        for place, item in enumerate(said):
            finish = "length" if place + 1 == limit else None
            piece = {"delta": {"content": f"<{item}>"}} if is_chat else {"text": f"<{item}>"}
            rows.append({"choices": [{"index": 0, "finish_reason": finish, **piece}]})
        usage = {"prompt_tokens": len(ids), "completion_tokens": limit}
        rows.append({"choices": [], "usage": usage})
        return [*(event({**head, **row}) for row in rows), b"data: [DONE]\n\n"]


def event(row: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(row).encode() + b"\n\n"


def rows(events: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(item.removeprefix(b"data: ")) for item in events if b"[DONE]" not in item]


def position_of(route: str, body: dict[str, Any]) -> StreamPosition:
    return StreamPosition(read_request(route, json.dumps(body).encode(), {}))


def served(route: str, body: dict[str, Any], cuts: list[int], every: int = 1) -> list[bytes]:
    """What the client has in the end, when try N ends after `cuts[N]` events."""
    position, client = position_of(route, body), list[bytes]()
    asked = body
    for number, cut in enumerate([*cuts, None]):
        engine = Engine(f"try-{number}")
        if route == "/generate":
            events = engine.generate(asked, every)
        else:
            events = engine.openai(asked, "chat" in route)
        events = events[:cut]
        if position.is_resumed:
            events = [new for item in events if (new := position.joined(item))]
        position.delivered(events)
        client += events
        if events and events[-1] == b"data: [DONE]\n\n":
            break
        if not client:
            continue
        why = position.why_not()
        if why:
            client.append(f"data: {why}".encode())
            break
        if position.is_complete:
            client.append(b"data: [DONE]\n\n")
            break
        question = position.text_to_tokenize()
        asked = position.body(engine.read(question[0]) if question else [])
    return client


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 6), max_size=4),
    every=st.integers(1, 3),
    limit=st.integers(1, 12),
    as_text=st.booleans(),
)
def test_generate_goes_on_token_by_token(
    cuts: list[int], every: int, limit: int, as_text: bool
) -> None:
    prompt = {"text": "<5><7><11>"} if as_text else {"input_ids": PROMPT}
    body = {**prompt, "stream": True, "sampling_params": {"max_new_tokens": limit}}
    whole = rows(Engine("try-0").generate(body, 1))
    got = served("/generate", body, cuts, every)
    assert got[-1] == b"data: [DONE]\n\n"
    events = rows(got)
    assert events[-1]["meta_info"] | {"id": ""} == whole[-1]["meta_info"] | {"id": ""}
    assert len({row["meta_info"]["id"] for row in events}) == 1
    lengths = [len(row["output_ids"]) for row in events]
    assert lengths == sorted(set(lengths))  # nothing comes twice
    for row in events:
        length = len(row["output_ids"])
        assert row["output_ids"] == whole[length - 1]["output_ids"]
        assert row["text"] == whole[length - 1]["text"]


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 6), max_size=4), limit=st.integers(1, 12))
def test_openai_streams_go_on_from_their_text(route: str, cuts: list[int], limit: int) -> None:
    is_chat = "chat" in route
    prompt = {"messages": [{"role": "user", "content": "<5><7><11>"}]}
    body = {**(prompt if is_chat else {"prompt": "<5><7><11>"}), "stream": True}
    body = {**body, "max_tokens": limit, "stream_options": {"include_usage": True}}
    whole = rows(Engine("try-0").openai(body, is_chat))
    got = served(route, body, cuts)
    if got[-1] == b"data: it lacks only its usage":
        got.pop()
    else:
        assert got[-1] == b"data: [DONE]\n\n"
        assert rows(got)[-1]["usage"] == whole[-1]["usage"]
    said = [text_of(row) for row in rows(got) if row["choices"]]
    assert said == [text_of(row) for row in whole if row["choices"]]
    assert len({(row["id"], row["created"]) for row in rows(got)}) == 1


def text_of(row: dict[str, Any]) -> str:
    [choice] = row["choices"]
    return str(choice["text"] if "text" in choice else choice["delta"]["content"])


GENERATE_BODY = {"input_ids": PROMPT, "stream": True}


@pytest.mark.parametrize(
    ("route", "body", "why"),
    [
        ("/generate", {**GENERATE_BODY, "return_logprob": True}, "return_logprob was given"),
        ("/generate", {"input_ids": [PROMPT], "stream": True}, "input_ids is a list of prompts"),
        ("/generate", {**GENERATE_BODY, "sampling_params": {"n": 2}}, "it has several answers"),
        (
            "/generate",
            {**GENERATE_BODY, "sampling_params": {"json_schema": "{}"}},
            "json_schema was given",
        ),
        (
            "/generate",
            {**GENERATE_BODY, "sampling_params": {"stop": ["<9><8>"]}},
            "it broke off where a stop string may begin",
        ),
        (
            "/v1/completions",
            {"prompt": "x", "stream": True, "frequency_penalty": 0.5},
            "frequency_penalty was given",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "assistant", "content": "x"}], "stream": True},
            "the last message is the assistant's",
        ),
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "x"}],
                "tools": [{"type": "function"}],
                "stream": True,
            },
            "tools was given",
        ),
    ],
)
def test_what_another_worker_cannot_know_is_named(
    route: str, body: dict[str, Any], why: str
) -> None:
    position = position_of(route, body)
    if route == "/generate":
        meta = {"completion_tokens": 1, "prompt_tokens": 3}
        position.delivered([event({"text": "<9>", "output_ids": [9], "meta_info": meta})])
    assert position.why_not() == why


def test_neutral_values_are_no_obstacle() -> None:
    sampling = {"n": 1, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "regex": None}
    body = {**GENERATE_BODY, "return_logprob": False, "sampling_params": sampling}
    assert position_of("/generate", body).why_not() == ""


def test_a_stream_of_only_the_newest_tokens_cannot_go_on() -> None:
    position = position_of("/generate", GENERATE_BODY)
    meta = {"completion_tokens": 4, "prompt_tokens": 3}
    position.delivered([event({"text": "x", "output_ids": [9], "meta_info": meta})])
    assert position.why_not() == "its events tell only the newest tokens"


def test_a_prompt_that_another_worker_reads_differently_is_an_error() -> None:
    position = position_of("/generate", {"text": "x", "stream": True})
    meta = {"completion_tokens": 1, "prompt_tokens": 3}
    position.delivered([event({"text": "x", "output_ids": [9], "meta_info": meta})])
    assert position.why_not() == ""
    with pytest.raises(ProtocolError, match="has 2 tokens here, and had 3"):
        position.body([1, 2])


def test_a_stream_that_broke_off_inside_a_character_is_an_error() -> None:
    position = position_of("/generate", GENERATE_BODY)
    with pytest.raises(ProtocolError, match="inside a character"):
        position.check_read("a�")
