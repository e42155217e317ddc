"""Messages that the link tests share."""

from __future__ import annotations

import pytest

from hexgen_sglang.protocol.messages import Hello


@pytest.fixture
def hello() -> Hello:
    return Hello(
        link_version=1,
        worker_id="w1",
        incarnation="first",
        url="http://127.0.0.1:30000",
        model="tiny",
        hardware="cpu",
        sglang_version="0.5.23",
        plugin_version="0.1.0",
        max_running_requests=8,
        kv_capacity_tokens=4096,
        ordering="least_slack",
    )
