"""Reading requests: tags, sizes, and refusals that name field, value and range."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hexgen_sglang.coordinator.incoming import IncomingRequest, read_request
from hexgen_sglang.core.errors import ProtocolError


def read(
    body: object, route: str = "/generate", headers: dict[str, str] | None = None
) -> IncomingRequest:
    return read_request(route, msgspec.json.encode(body), headers or {})


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}], **fields}


def test_the_tag_leaves_the_body() -> None:
    request = read({"text": "x", "hexgen": {"workflow_id": "w", "stage": "s"}})
    assert request.body == {"text": "x"}
    assert request.tag is not None
    assert (request.tag.workflow_id, request.tag.stage) == ("w", "s")


def test_headers_make_a_tag_and_a_bare_session_id_is_one() -> None:
    headers = {"X-Hexgen-Workflow-Id": "w", "x-hexgen-budget-ms": "1500"}
    tag = read({"text": "x"}, headers=headers).tag
    assert tag is not None
    assert (tag.workflow_id, tag.budget_ms) == ("w", 1500)
    session = read({"text": "x"}, headers={"x-session-id": "s1"}).tag
    assert session is not None
    assert session.workflow_id == "s1"


def test_body_and_headers_fill_each_other_in() -> None:
    headers = {"x-hexgen-budget-ms": "900", "x-hexgen-stage": "s", "x-session-id": "other"}
    tag = read({"text": "x", "hexgen": {"workflow_id": "w", "stage": "s"}}, headers=headers).tag
    assert tag is not None
    assert (tag.workflow_id, tag.stage, tag.budget_ms) == ("w", "s", 900)


def test_body_and_headers_that_differ_are_refused_with_both_values() -> None:
    with pytest.raises(
        ProtocolError,
        match=r"hexgen\.budget_ms=100 in the body but x-hexgen-budget-ms=200 in the headers",
    ):
        read(
            {"text": "x", "hexgen": {"workflow_id": "w", "budget_ms": 100}},
            headers={"x-hexgen-budget-ms": "200"},
        )
    with pytest.raises(ProtocolError, match=r"workflow_id='w' in the body but .*='v'"):
        read({"text": "x", "hexgen": {"workflow_id": "w"}}, headers={"x-hexgen-workflow-id": "v"})


@pytest.mark.parametrize(
    ("route", "body", "said"),
    [
        ("/generate", ["x"], r"body: must be a JSON object, not \[\"x\"\]"),
        ("/generate", {"text": 5}, "text=5: must be a string, a list of token ids"),
        ("/generate", {"text": []}, r"text=\[\]: must be"),
        ("/generate", {"text": ["a", 1]}, r"text=\[\"a\",1\]: must be"),
        ("/generate", {"input_ids": [1, -2]}, r"input_ids=\[1,-2\]: must be"),
        ("/generate", {}, "text=null: must be text, input_ids or input_embeds"),
        ("/generate", {"text": "x", "stream": "yes"}, 'stream="yes": must be true or false'),
        ("/generate", {"text": "x", "rid": "mine"}, 'rid="mine": must be left out'),
        ("/generate", {"text": "x", "sampling_params": 3}, "sampling_params=3: must be an object"),
        (
            "/generate",
            {"text": "x", "sampling_params": {"custom_params": 3}},
            "sampling_params.custom_params=3: must be an object",
        ),
        ("/generate", {"text": "x", "hexgen": {}}, "hexgen: .*workflow_id"),
        (
            "/generate",
            {"text": "x", "hexgen": {"workflow_id": "w", "budget_ms": 0}},
            "hexgen: Expected `int` >= 1 .*budget_ms='0'",
        ),
        (
            "/generate",
            {"text": "x", "hexgen": {"workflow_id": "w", "stage": ""}},
            "stage=''",
        ),
        ("/v1/completions", {"model": 7, "prompt": "x"}, "model=7: must be the name"),
        ("/v1/completions", {"prompt": None}, "prompt=null: must be a string"),
        ("/v1/completions", {"prompt": "x", "stream_options": 1, "stream": True}, "an object"),
        ("/v1/chat/completions", {}, "messages=null: must be a list with at least one"),
        ("/v1/chat/completions", {"messages": []}, r"messages=\[\]: must be"),
        ("/v1/chat/completions", chat(custom_params=[]), r"custom_params=\[\]: must be an object"),
    ],
)
def test_wrong_bodies_name_field_value_and_range(route: str, body: object, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        read(body, route)


@pytest.mark.parametrize("raw", [b"", b"{", b'{"text": "\\ud800"}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="body: not valid JSON"):
        read_request("/generate", raw, {})


def test_a_long_offending_value_is_cut() -> None:
    with pytest.raises(ProtocolError) as error:
        read({"text": {"a": "x" * 10_000}})
    assert len(str(error.value)) < 250


def test_sizes_and_limits() -> None:
    one = read({"text": "x" * 1000, "sampling_params": {"max_new_tokens": 7, "n": 3}})
    assert (one.shape.num_chars, one.num_outputs, one.max_output_tokens) == (1000, 3, 7)
    assert len(one.shape.blocks) == 3
    batch = read({"text": ["ab", "cde"]})
    assert (batch.shape.num_prompts, batch.shape.num_chars, batch.num_outputs) == (2, 5, 2)
    ids = read({"input_ids": list(range(130))})
    assert (ids.shape.num_token_ids, len(ids.shape.blocks)) == (130, 2)
    talk = read(chat(max_completion_tokens=9, n=2), "/v1/chat/completions")
    assert (talk.max_output_tokens, talk.num_outputs) == (9, 2)
    assert read({"text": "x", "sampling_params": {"max_new_tokens": 1.5}}).max_output_tokens is None


def test_equal_prefixes_have_equal_blocks_and_only_those() -> None:
    base = "".join(f"line {number}\n" for number in range(200))
    one = read({"text": base + "first"}).shape.blocks
    other = read({"text": base + "second, and longer" * 50}).shape.blocks
    shared = len(base) // 256
    assert one[:shared] == other[:shared]
    moved = read({"text": "!" + base}).shape.blocks
    assert not set(moved) & set(one)


def test_a_chat_that_goes_on_has_the_earlier_one_as_prefix() -> None:
    turns = [{"role": "user", "content": "q" * 600}, {"role": "assistant", "content": "a" * 600}]
    short = read({"messages": turns[:1]}, "/v1/chat/completions").shape.blocks
    long = read({"messages": turns}, "/v1/chat/completions").shape.blocks
    assert long[: len(short)] == short
    tools = read({"messages": turns, "tools": [{"type": "function"}]}, "/v1/chat/completions")
    assert tools.shape.blocks[0] != long[0]


@pytest.mark.parametrize(
    ("fields", "adds"),
    [
        ({"stream": True}, True),
        ({"stream": True, "stream_options": {"continuous_usage_stats": False}}, True),
        ({"stream": True, "stream_options": {"include_usage": False}}, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, False),
        ({}, False),
    ],
)
def test_usage_is_asked_for_only_when_the_client_left_it_open(
    fields: dict[str, Any], adds: bool
) -> None:
    assert read(chat(**fields), "/v1/chat/completions").adds_usage is adds


@pytest.mark.parametrize(("model", "meant"), [(None, None), ("default", None), ("m", "m")])
def test_the_default_model_is_no_choice(model: str | None, meant: str | None) -> None:
    assert read({"prompt": "x", "model": model}, "/v1/completions").model == meant


def test_generate_routes_by_model_but_does_not_pass_it_on() -> None:
    request = read({"text": "x", "model": "m"})
    assert (request.model, request.body) == ("m", {"text": "x"})
