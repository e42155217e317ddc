"""HexGen-Flow's JSON: a list of `{"Text2SQLRequest": [{"step", "input_length",
"output_length"}, ...]}`, one element a workflow, requests in order.
"""

from __future__ import annotations

import json
from typing import Any

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.formats.problem import problem, text, whole_number
from hexgen_sglang.workload.formats.published import PublishedRequest, to_workflow
from hexgen_sglang.workload.trace import Trace

FORMAT = "hexgen-flow"
KEY = "Text2SQLRequest"
_FIELDS = ("step", "input_length", "output_length")


def read(path: str, name: str, content: str) -> Trace:
    """The trace in `content`.

    Raises:
        ConfigError: names file, line, field and value.
    """
    try:
        elements = json.loads(content)
    except json.JSONDecodeError as error:
        raise problem(path, error.lineno, f"not valid JSON: {error.msg}") from error
    if not isinstance(elements, list) or not elements:
        raise problem(path, 1, "must be a list of at least one workflow")
    workflows = []
    for index, element in enumerate(elements):
        line = _LazyLine(content, index)
        if not isinstance(element, dict) or not isinstance(element.get(KEY), list):
            raise problem(path, line.workflow(), f"{KEY}: must be a list of requests")
        if not element[KEY]:
            raise problem(path, line.workflow(), f"{KEY}=[]: must have at least one request")
        rows = [_row(path, line, number, item) for number, item in enumerate(element[KEY])]
        try:
            workflows.append(to_workflow(f"{name}-{index}", rows))
        except ConfigError as error:
            raise problem(path, line.workflow(), str(error)) from error
    return Trace(name=name, origin=path, format=FORMAT, workflows=tuple(workflows))


def _row(path: str, line: _LazyLine, number: int, item: object) -> PublishedRequest:
    """One request, checked; the line is worked out only for an error."""
    try:
        return _checked_row(path, None, item)
    except ConfigError:
        return _checked_row(path, line.request(number), item)


def _checked_row(path: str, line: int | None, item: object) -> PublishedRequest:
    if not isinstance(item, dict):
        raise problem(path, line, f"request {item!r}: must be an object")
    for field in _FIELDS:
        if field not in item:
            raise problem(path, line, f"{field}: missing; a request has {', '.join(_FIELDS)}")
    return PublishedRequest(
        step=text(path, line, "step", item["step"]),
        num_input_tokens=whole_number(path, line, "input_length", item["input_length"]),
        num_output_tokens=whole_number(path, line, "output_length", item["output_length"]),
    )


class _LazyLine:
    """Line numbers of a workflow and of its requests, found by walking the text again."""

    def __init__(self, content: str, workflow: int) -> None:
        self._content = content
        self._workflow = workflow

    def workflow(self) -> int:
        return self._line(self._workflow_start())

    def request(self, number: int) -> int:
        start = self._workflow_start()
        opening = self._content.index("[", self._content.index(KEY, start))
        return self._line(_element_start(self._content, opening, number))

    def _workflow_start(self) -> int:
        return _element_start(self._content, self._content.index("["), self._workflow)

    def _line(self, offset: int) -> int:
        return self._content.count("\n", 0, offset) + 1


def _element_start(content: str, opening: int, number: int) -> int:
    """Offset of element `number` of the valid JSON list that opens at `opening`."""
    decoder: Any = json.JSONDecoder()
    offset = _skip(content, opening + 1)
    for _ in range(number):
        _, end = decoder.raw_decode(content, offset)
        offset = _skip(content, _skip(content, end) + 1)
    return offset


def _skip(content: str, offset: int) -> int:
    """Offset of the next character that is not white space."""
    while offset < len(content) and content[offset].isspace():
        offset += 1
    return offset
