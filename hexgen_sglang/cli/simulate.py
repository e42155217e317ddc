"""`hexgen-sglang simulate`: the bench's command line and results, from the simulator."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from hexgen_sglang.bench.plan import EngineKind
from hexgen_sglang.cli import bench


@functools.wraps(bench.command)
def command(**options: Any) -> None:  # noqa: D103 - its help is below, not the wrapped one's
    bench.command(**options, engine=EngineKind.SIM)


command.__doc__ = """Simulate every system on the same arrivals and prompts.

Takes the options of `bench` except --engine, and writes the same results; --time-scale has no
effect. Exits with 1 when a law was broken.
"""
_signature = inspect.signature(bench.command, eval_str=True)
command.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=[one for one in _signature.parameters.values() if one.name != "engine"]
)
