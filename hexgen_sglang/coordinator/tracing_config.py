"""Settings of OpenTelemetry traces: the table `[coordinator.tracing]`. Spans are in `tracing`."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from hexgen_sglang.protocol.tag import Name


class TracingConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where spans go; needs the extra `hexgen-sglang[otel]`.

    The exporter's other settings, such as headers, come from OpenTelemetry's own variables
    (`OTEL_EXPORTER_OTLP_HEADERS`).

    Attributes:
        endpoint: of a collector, OTLP over HTTP, such as "http://127.0.0.1:4318/v1/traces"; "":
            nothing is traced.
        sample_frac: share of the traces that begin here; what a client decided is kept to.
        service_name: told with every span.
    """

    endpoint: Annotated[str, Meta(max_length=2_048)] = ""
    sample_frac: Annotated[float, Meta(ge=0, le=1)] = 1.0
    service_name: Name = "hexgen-coordinator"

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint)
        if self.endpoint and (parts.scheme not in {"http", "https"} or not parts.hostname):
            raise ValueError(f"endpoint={self.endpoint!r}: must be http://host:port/v1/traces")
