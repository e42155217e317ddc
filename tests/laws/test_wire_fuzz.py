"""A small run of the wire fuzzer (launch/bench/fuzz_wire.py), and that it can find something."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "bench" / "fuzz_wire.py"


@pytest.fixture(scope="module")
def fuzzer():
    spec = importlib.util.spec_from_file_location("fuzz_wire", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_wire"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz_wire"]


def test_twenty_thousand_hostile_inputs_are_messages_or_protocol_errors(fuzzer):
    tally = fuzzer.fuzz(20_000, seed=20261122, max_s=60)
    assert tally.num_inputs > 2_000
    assert tally.findings == []
    every = {kind.__name__ for kind in fuzzer.KINDS}
    assert set(tally.accepted) == every  # all types came up, and some inputs stayed valid
    assert tally.num_refused > tally.num_inputs
    assert tally.num_version_errors > 0


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda data: data[10_000], "raised IndexError"),
        (lambda data: (_ for _ in ()).throw(RecursionError("deep")), "raised RecursionError"),
        (lambda data: fuzz_goodbye("x" * 600), "cannot be sent again"),
    ],
)
def test_a_decoder_that_breaks_the_law_is_found(broken, said, fuzzer, monkeypatch):
    broken.__name__ = "broken"
    monkeypatch.setattr(fuzzer, "decode_worker_message", broken)
    tally = fuzzer.fuzz(50, seed=1, max_s=60)
    assert tally.num_findings > 0
    assert said in tally.findings[0]["what"]


def fuzz_goodbye(reason):
    """What a decoder without bounds would let through."""
    from hexgen_sglang.protocol.messages import Goodbye

    return Goodbye(reason)
