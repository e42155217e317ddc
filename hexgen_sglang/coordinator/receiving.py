"""The first look at a request: who sent it, and its body within bounds.

Runs in the coordinator's event loop, before anything of a request is believed. What a body means
is in `incoming`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.requests import Request

from hexgen_sglang.coordinator.access import Caller
from hexgen_sglang.coordinator.api_keys import Role
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.service import Coordinator


def admitted(
    coordinator: Coordinator, headers: Mapping[str, str], roles: tuple[Role, ...]
) -> Caller:
    """Who calls, before anything else of the request is looked at.

    Raises:
        ApiError: 401, 403, or 431 for headers that are too long.
    """
    most = coordinator.config.max_header_bytes
    if sum(len(name) + len(value) + 4 for name, value in headers.items()) > most:
        raise ApiError(431, f"headers: must be at most {most} bytes", code="headers_too_large")
    caller = coordinator.access.caller(headers)
    caller.require(*roles)
    return caller


async def read_body(request: Request, coordinator: Coordinator) -> bytes:
    """The body, refused as soon as it is too long, and when it takes too long.

    Raises:
        ApiError: 413, 408.
        ClientDisconnect: the client went away while sending.
    """
    max_bytes, timeout_s = coordinator.config.max_body_bytes, coordinator.config.body_timeout_s
    pieces: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in request.stream():
                length += len(piece)
                if length > max_bytes:
                    message = f"body: must be at most {max_bytes} bytes"
                    raise ApiError(413, message, code="body_too_large")
                pieces.append(piece)
    except TimeoutError as error:
        message = f"body: must be complete within {timeout_s:g} s"
        raise ApiError(408, message, code="body_too_slow") from error
    return b"".join(pieces)
