"""Readers of trace files, one module a format; `load_trace` finds out which one applies."""

from hexgen_sglang.workload.formats.detect import load_trace

__all__ = ["load_trace"]
