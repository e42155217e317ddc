"""What an emulated accelerator tells, and what a caller may tell it about one request.

The first stands among the internal states of `GET /server_info`, the second in `custom_params`.
"""

from __future__ import annotations

from collections.abc import Mapping

from hexgen_sglang.core.errors import ProtocolError

# Where the emulated accelerator's summary stands; its `time_scale` is the emulated seconds in one
# real second.
STATE_FIELD = "hexgen_emulation"

# The emulated model never ends an answer by itself. With this parameter it says "end of text"
# as that output token, so that `max_new_tokens` can be the caller's limit as on a real model,
# and no policy of the engine sees the true length.
OUTPUT_TOKENS = "hexgen_emulated_output_tokens"
MAX_OUTPUT_TOKENS = 1_048_576


def emulated_output_tokens(custom_params: Mapping[str, object] | None) -> int | None:
    """After how many output tokens the emulated model ends its answer; None: never.

    Raises:
        ProtocolError: names the parameter, its value and the allowed range.
    """
    value = custom_params.get(OUTPUT_TOKENS) if custom_params else None
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= MAX_OUTPUT_TOKENS:
        raise ProtocolError(
            f"custom_params.{OUTPUT_TOKENS}={str(value)[:80]!r}: must be an integer from 1 to "
            f"{MAX_OUTPUT_TOKENS}"
        )
    return value
