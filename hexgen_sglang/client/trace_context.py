"""The caller's OpenTelemetry trace on its requests, where the calling program traces at all."""

from __future__ import annotations

import sys


def trace_headers() -> dict[str, str]:
    """`traceparent` of the current span; nothing without one. Loads nothing that is not loaded."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.propagate import inject

    headers: dict[str, str] = {}
    inject(headers)
    return headers
