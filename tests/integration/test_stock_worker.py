"""A plain SGLang server on the torch-CPU platform, started by our supervisor."""

from __future__ import annotations

import json
import urllib.request
from typing import Any


def generate(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_it_generates_and_reuses_a_prefix(stock_worker) -> None:
    body = {
        "text": "SELECT name FROM artists WHERE " * 8,
        "sampling_params": {"max_new_tokens": 7, "temperature": 0},
    }
    first = generate(stock_worker.url, body)["meta_info"]
    second = generate(stock_worker.url, body)["meta_info"]
    assert (first["completion_tokens"], second["completion_tokens"]) == (7, 7)
    assert second["cached_tokens"] > first["prompt_tokens"] // 2


def test_the_server_is_one_family_of_processes(stock_worker) -> None:
    members = stock_worker.process.members()
    assert stock_worker.process.pid in members
    assert len(members) >= 3, "the server, its scheduler and its detokenizer"
