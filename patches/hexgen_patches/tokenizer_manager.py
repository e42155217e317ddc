"""Hook of `TokenizerManager`, in the process that serves HTTP."""

from __future__ import annotations

from typing import Any

from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.plugin import request_view


def check_tag(manager: Any, obj: Any, input_ids: Any) -> None:
    """BEFORE _validate_one_request: a malformed tag is an invalid request.

    SGLang answers ValueError with a 400; on /generate with `stream` the 400 is in the first
    event, as for its own checks.
    """
    try:
        request_view.check_tag(getattr(obj, "sampling_params", None))
    except ProtocolError as error:
        raise ValueError(str(error)) from error
