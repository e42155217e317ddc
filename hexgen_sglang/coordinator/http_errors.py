"""Errors as HTTP answers, in the format that OpenAI clients understand.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

Every refusal of the coordinator goes through here; answers of workers pass unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from hexgen_sglang.core.errors import (
    AdmissionRejected,
    ConfigError,
    HexgenError,
    ProtocolError,
    WorkerUnavailableError,
)


class ApiError(HexgenError):
    """A refusal with its HTTP status.

    Args:
        status: HTTP status, 400-599.
        message: for a person: field, value and allowed range where there is one.
        kind: OpenAI's `type`, such as "invalid_request_error".
        code: short word for a program, such as "model_not_found".
        param: the offending field; None when there is none.
        retry_after_s: after which trying again makes sense; None: no such promise.
        extra: further fields of the error, for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        extra: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.extra = extra or {}

    def body(self) -> bytes:
        """The JSON body."""
        detail = {
            "message": str(self),
            "type": self.kind,
            "param": self.param,
            "code": self.code,
            **self.extra,
        }
        return msgspec.json.encode({"error": detail})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Content type, length, `Retry-After` in whole seconds, at least 1, and for 401 how."""
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(self.body())).encode()),
        ]
        if self.retry_after_s is not None:
            seconds = max(1, math.ceil(self.retry_after_s))
            headers.append((b"retry-after", str(seconds).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers

    def sse_event(self) -> bytes:
        """The same as one event of a stream that has already begun."""
        return b"data: " + self.body() + b"\n\n"


def as_api_error(error: HexgenError) -> ApiError:
    """Our own errors as answers; what is not the caller's fault is a 500."""
    match error:
        case ApiError():
            return error
        case AdmissionRejected():
            return ApiError(
                429,
                str(error),
                kind="rate_limit_error",
                code="queue_full",
                retry_after_s=error.retry_after_s,
            )
        case ProtocolError() | ConfigError():
            return ApiError(400, str(error), code="invalid_value")
        case WorkerUnavailableError():
            return ApiError(
                503, str(error), kind="server_error", code="no_worker", retry_after_s=1.0
            )
    return ApiError(500, str(error), kind="server_error", code="internal_error")


def unknown_model(model: str, known: Iterable[str]) -> ApiError:
    """404 that lists what is served."""
    listing = ", ".join(sorted(known))
    return ApiError(
        404,
        f"model={model!r}: not served here; models: {listing}",
        code="model_not_found",
        param="model",
    )


def draining() -> ApiError:
    """503 of a coordinator that is shutting down."""
    return ApiError(
        503,
        "the coordinator is shutting down and takes no new requests",
        kind="server_error",
        code="draining",
        retry_after_s=5.0,
    )
