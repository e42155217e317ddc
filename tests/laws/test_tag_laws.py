"""The workflow tag: what is valid survives the wire, what is not is named, nothing else."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.tag import (
    EngineTag,
    WorkflowTag,
    engine_tag,
    tag_from_body,
    tag_from_headers,
)

ALPHABET = "abcXYZ019._:/@+=-"
NAMES = st.text(ALPHABET, min_size=1, max_size=64)
# Words that a lenient reader might take for something else than a name:
TRAPS = st.sampled_from(["null", "true", "0", "-1", "1e3", "NaN", "..", "//", "="])
FIELDS = [field.name for field in msgspec.structs.fields(WorkflowTag)]
thoroughly = settings(max_examples=150, deadline=None)


@st.composite
def tags(draw: st.DrawFn, kind: type[WorkflowTag] = WorkflowTag) -> WorkflowTag:
    siblings = draw(st.integers(1, 1024))
    values = {
        "workflow_id": draw(st.text(ALPHABET, min_size=1, max_size=128) | TRAPS),
        "workflow_type": draw(st.none() | NAMES | TRAPS),
        "stage": draw(st.none() | NAMES | TRAPS),
        "budget_ms": draw(st.none() | st.integers(1, 86_400_000)),
        "siblings": siblings,
        "sibling_index": draw(st.integers(0, siblings - 1)),
        "tenant": draw(st.none() | NAMES | TRAPS),
        "final": draw(st.booleans()),
        "expected_output_tokens": draw(st.none() | st.integers(1, 1_048_576)),
    }
    if kind is EngineTag:
        values["predicted_remaining_ms"] = draw(st.none() | st.integers(0, 86_400_000))
    return kind(**values)


def as_headers(tag: WorkflowTag) -> dict[str, str]:
    """The tag as a client would write it into headers."""
    return {
        "x-hexgen-" + name.replace("_", "-"): str(value).lower() if value is True else str(value)
        for name, value in msgspec.to_builtins(tag).items()
        if value is not None
    }


DEEP: list[object] = []
for _ in range(50_000):
    DEEP = [DEEP]


def monster(kind: str) -> object:
    """By name, since Hypothesis shows what it samples from, and these cannot be shown."""
    return DEEP if kind == "deep" else 10**5000


MONSTERS = st.sampled_from(["deep", "huge"]).map(monster)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([2**64, "\ud800", "a\n"])
    | MONSTERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
# For each field: values that must be refused.
WRONG_NAME = (
    st.sampled_from(
        ["", "x" * 129, "a b", "a\n", "\n", "naïve", 'a"', "<b>", "\ud800", 7, True, [], {}, 1.5]
    )
    | MONSTERS
)
WRONG_COUNT = (
    st.sampled_from([-1, 2**31, 2**64, 1.5, "7", True, float("nan"), float("inf"), [], {}])
    | MONSTERS
)
WRONG = {
    "workflow_id": WRONG_NAME | st.none(),
    "workflow_type": WRONG_NAME,
    "stage": WRONG_NAME,
    "tenant": WRONG_NAME,
    "budget_ms": WRONG_COUNT | st.just(0) | st.just(86_400_001),
    "siblings": WRONG_COUNT | st.just(0) | st.just(1025) | st.none(),
    "sibling_index": WRONG_COUNT | st.just(1024) | st.none(),
    "final": st.sampled_from([0, 1, "true", None, []]) | MONSTERS,
    "expected_output_tokens": WRONG_COUNT | st.just(0) | st.just(1_048_577),
}


def check_message(error: ProtocolError) -> str:
    """An error's text can go into a log line and a JSON body, and stays short."""
    text = str(error)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 1000
    return text


@thoroughly
@given(tag=tags())
def test_a_tag_survives_the_body(tag):
    assert tag_from_body(json.loads(msgspec.json.encode(tag))) == tag
    assert tag_from_body(msgspec.structs.asdict(tag)) == tag


@thoroughly
@given(tag=tags(), upper=st.booleans())
def test_a_tag_survives_the_headers(tag, upper):
    headers = as_headers(tag)
    if upper:
        headers = {name.upper(): value for name, value in headers.items()}
    assert tag_from_headers({"accept": "*/*", **headers}) == tag


@thoroughly
@given(tag=tags(EngineTag))
def test_an_engine_tag_survives_custom_params(tag):
    assert engine_tag(json.loads(msgspec.json.encode(tag))) == tag


@thoroughly
@given(tag=tags())
def test_a_callers_tag_is_a_valid_engine_tag(tag):
    received = engine_tag(json.loads(msgspec.json.encode(tag)))
    assert received == EngineTag(**msgspec.structs.asdict(tag))


@settings(max_examples=400, deadline=None)
@given(value=JSON | st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_a_tag_or_a_protocol_error(value):
    for read in (tag_from_body, engine_tag):
        try:
            tag = read(value)
        except ProtocolError as error:
            check_message(error)
        else:
            assert read(msgspec.to_builtins(tag)) == tag


@pytest.mark.parametrize(
    "value",
    [
        DEEP,
        {"workflow_id": DEEP},
        {"workflow_id": "a", "unknown": DEEP},
        {"workflow_id": "a", "x" * 100_000: 1},
        {"workflow_id": "a", "\ud800\n": 1},
        {"workflow_id": "a" * 10_000_000},
        {7: "a"},
    ],
    ids=range(7),
)
def test_monstrous_json_is_a_short_protocol_error(value):
    with pytest.raises(ProtocolError) as caught:
        tag_from_body(value)
    check_message(caught.value)


@pytest.mark.parametrize("field", FIELDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_wrong_value_is_refused_and_its_field_named(field, data):
    tag = msgspec.to_builtins(data.draw(tags()))
    tag[field] = data.draw(WRONG[field])
    for read in (tag_from_body, engine_tag):
        with pytest.raises(ProtocolError) as caught:
            read(tag)
        assert field in check_message(caught.value)


@thoroughly
@given(tag=tags(), name=st.text(min_size=1, max_size=20).filter(lambda name: name not in FIELDS))
def test_an_unknown_field_is_refused(tag, name):
    with pytest.raises(ProtocolError) as caught:
        tag_from_body({**msgspec.to_builtins(tag), name: 1})
    check_message(caught.value)


HEADER_NAMES = (
    st.sampled_from(sorted(as_headers(WorkflowTag("a", "b", "c", 1, 2, 1, "t", True, 1))))
    | st.sampled_from(["x-session-id", "X-Hexgen-Workflow-Id", "x-hexgen-", "x-hexgen-nothing"])
    | st.text().map(lambda text: "x-hexgen-" + text)
    | st.text()
)
HEADER_VALUES = (
    st.text() | NAMES | TRAPS | st.integers().map(str) | st.sampled_from(["", "9" * 5000])
)


@settings(max_examples=300, deadline=None)
@given(headers=st.dictionaries(HEADER_NAMES, HEADER_VALUES, max_size=8))
def test_any_headers_are_a_tag_nothing_or_a_protocol_error(headers):
    ours = [n for n in map(str.lower, headers) if n.startswith("x-hexgen-") or n == "x-session-id"]
    try:
        tag = tag_from_headers(headers)
    except ProtocolError as error:
        assert ours
        check_message(error)
    else:
        assert (tag is None) == (not ours)
        if tag is not None:
            assert tag_from_headers(as_headers(tag)) == tag


@thoroughly
@given(session=NAMES, tag=tags())
def test_a_session_id_names_the_workflow_unless_a_workflow_id_does(session, tag):
    assert tag_from_headers({"X-Session-Id": session}) == WorkflowTag(session)
    assert tag_from_headers({"x-session-id": session, **as_headers(tag)}) == tag
