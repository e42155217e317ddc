"""Put on the import path of a drilled process: its wall clock and its load reports can lie.

Python imports this before anything else. The lies are read from the files `clock_shift_s` and
`load` in the folder that HEXGEN_DRILL_FOLDER names; absent files: no lie. Standard library only
until the process imports our messages itself.
"""

import os
import time
from pathlib import Path

_folder = Path(os.environ.get("HEXGEN_DRILL_FOLDER", os.devnull))
_real_time, _real_time_ns = time.time, time.time_ns
_known = (0.0, 0.0)  # the shift in force, and when it was read


def _shift_s() -> float:
    global _known
    now_s = time.monotonic()
    if now_s - _known[1] > 0.05:
        try:
            _known = (float((_folder / "clock_shift_s").read_text()), now_s)
        except (OSError, ValueError):
            _known = (_known[0], now_s)
    return _known[0]


def _shifted_time() -> float:
    return _real_time() + _shift_s()


def _shifted_time_ns() -> int:
    return _real_time_ns() + round(_shift_s() * 1e9)


def _lie_about_load() -> None:
    """Make the load reports of this worker say what the file `load` says."""
    from hexgen_sglang.protocol import messages

    true_load = messages.Load

    def load(**counts: int) -> messages.Load:
        try:
            told = (_folder / "load").read_text().strip()
        except OSError:
            told = ""
        return true_load(**(dict.fromkeys(counts, int(told)) if told else counts))

    messages.Load = load  # type: ignore[assignment,misc]


if _folder.is_dir():
    time.time, time.time_ns = _shifted_time, _shifted_time_ns
    if os.environ.get("HEXGEN_DRILL_LIES") == "load":
        _lie_about_load()
