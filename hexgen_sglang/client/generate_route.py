"""One `/generate` exchange with the coordinator: send, wait, stream, and what errors mean.

Lives in the caller's process, blocking; knows nothing of programs. `requests` comes with
SGLang, which every user of this file has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import requests

from hexgen_sglang.client.trace_context import trace_headers
from hexgen_sglang.core.errors import AdmissionRejected, ProtocolError, WorkerUnavailableError
from hexgen_sglang.protocol.tag import BODY_FIELD

TagMaker = Callable[[], dict[str, Any]]
Remaining = Callable[[], float | None]

_CONNECT_TIMEOUT_S = 10.0
_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 5.0
_MAX_ERROR_CHARS = 500


class GenerateRoute:
    """Sends tagged requests to POST /generate; safe to use from many threads.

    A 429 is waited out as the coordinator asks, until the workflow's deadline has passed or,
    without one, `timeout_s` is over; then it is the caller's error.

    Args:
        url: base URL without a slash at its end.
        api_key: bearer token, or None.
        timeout_s: longest silence while an answer is awaited, queueing included; above 0.
    """

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        self._url = f"{url}/generate"
        self._timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def send(
        self, body: dict[str, Any], make_tag: TagMaker, remaining_s: Remaining | None
    ) -> dict[str, Any]:
        """The answer's JSON object, with `text` and `meta_info`.

        Raises:
            AdmissionRejected: the queue stayed full.
            ProtocolError: the coordinator or engine refuses the request (a 4xx).
            WorkerUnavailableError: no connection, a 5xx, or the request was aborted.
        """
        with self._post(body, make_tag, remaining_s, stream=False) as response:
            return self._checked(self._decoded(response.content))

    def stream(
        self, body: dict[str, Any], make_tag: TagMaker, remaining_s: Remaining | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(new text, meta_info) for each event. Errors as in `send`, also midway."""
        position = 0
        streaming = {**body, "stream": True}
        with self._post(streaming, make_tag, remaining_s, stream=True) as response:
            for line in self._lines(response):
                if not line.startswith(b"data:"):
                    continue
                data = line[len(b"data:") :].strip()
                if data == b"[DONE]":
                    return
                answer = self._checked(self._decoded(data))
                text = answer["text"][position:]
                position += len(text)
                yield text, answer["meta_info"]
        raise WorkerUnavailableError(f"{self._url}: the stream broke off before its end")

    def _post(
        self,
        body: dict[str, Any],
        make_tag: TagMaker,
        remaining_s: Remaining | None,
        *,
        stream: bool,
    ) -> requests.Response:
        give_up_s = time.monotonic() + self._timeout_s
        while True:
            response = self._post_once({**body, BODY_FIELD: make_tag()}, stream=stream)
            if response.status_code == 200:
                return response
            with response:
                error = self._error(response)
            left_s = remaining_s() if remaining_s is not None else None
            if left_s is None:
                left_s = give_up_s - time.monotonic()
            if not isinstance(error, AdmissionRejected) or left_s <= error.retry_after_s:
                raise error
            time.sleep(error.retry_after_s)

    def _post_once(self, body: dict[str, Any], *, stream: bool) -> requests.Response:
        try:
            return requests.post(
                self._url,
                json=body,
                headers={**self._headers, **trace_headers()},
                stream=stream,
                timeout=(_CONNECT_TIMEOUT_S, self._timeout_s),
            )
        except requests.RequestException as error:
            raise WorkerUnavailableError(f"POST {self._url}: {error}") from error

    def _lines(self, response: requests.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_lines()
        except requests.RequestException as error:
            raise WorkerUnavailableError(f"{self._url}: the stream broke off: {error}") from error

    def _error(self, response: requests.Response) -> Exception:
        status = response.status_code
        message = f"POST {self._url}: HTTP {status}: {response.text[:_MAX_ERROR_CHARS]}"
        if status == 429:
            return AdmissionRejected(message, _retry_after_s(response.headers.get("Retry-After")))
        return ProtocolError(message) if 400 <= status < 500 else WorkerUnavailableError(message)

    def _decoded(self, data: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise WorkerUnavailableError(
                f"{self._url}: expected a JSON object, got {data[:_MAX_ERROR_CHARS]!r}"
            )
        return answer

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer itself, unless it tells of an error or an abort."""
        if "error" in answer or "text" not in answer or "meta_info" not in answer:
            raise WorkerUnavailableError(f"{self._url}: {str(answer)[:_MAX_ERROR_CHARS]}")
        reason = answer["meta_info"].get("finish_reason")
        if isinstance(reason, dict) and reason.get("type") == "abort":
            raise WorkerUnavailableError(f"{self._url}: aborted: {reason.get('message')}")
        return answer


def _retry_after_s(header: str | None) -> float:
    """Seconds to wait as the header asks, within bounds; it may also be a date (then: most)."""
    try:
        wanted_s = float(header) if header is not None else _MIN_RETRY_S
    except ValueError:
        wanted_s = _MAX_RETRY_S
    return min(_MAX_RETRY_S, max(_MIN_RETRY_S, wanted_s))
