"""Hooks of `TokenizerManager`, in the process that serves HTTP.

SGLang loads no plugins in the additional processes of --tokenizer-worker-num, and its Rust front
has no TokenizerManager: a malformed tag gets through there and is best effort in the scheduler.
"""

from __future__ import annotations

from typing import Any

from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.plugin import request_view
from hexgen_sglang.protocol.emulation import emulated_output_tokens


def check_tag(manager: Any, obj: Any, input_ids: Any) -> None:
    """BEFORE _validate_one_request: a malformed tag is an invalid request.

    SGLang answers ValueError with a 400; on /generate with `stream` the 400 is in the first
    event, as for its own checks.
    """
    try:
        request_view.check_tag(getattr(obj, "sampling_params", None))
    except ProtocolError as error:
        raise ValueError(str(error)) from error


def check_emulated(manager: Any, obj: Any, input_ids: Any) -> None:
    """BEFORE _validate_one_request: what no emulated model can answer is an invalid request."""
    if getattr(obj, "return_logprob", False):
        raise ValueError("return_logprob: an emulated accelerator has no log probabilities")
    params = getattr(obj, "sampling_params", None)
    try:
        emulated_output_tokens(params.get("custom_params") if isinstance(params, dict) else None)
    except ProtocolError as error:
        raise ValueError(str(error)) from error
