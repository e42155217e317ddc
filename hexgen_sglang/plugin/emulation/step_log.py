"""The step log of an emulated run: `steps.jsonl` and `summary.json` in one folder.

In the scheduler process. Lines are written by a thread of their own, off SGLang's loop; what a
killed process loses is at most the last second.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin.emulation.accounting import StepRecord

logger = logging.getLogger(__name__)

PERIOD_S = 0.5
# About an hour of fast decoding; older lines go when the disk is that slow or full.
_MAX_PENDING = 500_000


class StepLog:
    """Writes records and a summary; `add` costs one append.

    When the folder cannot be written any more, that is logged and the log ends.

    The first line of `steps.jsonl` is the header; each other one a `StepRecord`.

    Args:
        folder: made if absent; older files of the two names are overwritten.
        header: plain JSON data.
        summary: called about twice a second while there are new records, for plain JSON data.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path, header: dict[str, Any], summary: Callable[[], dict[str, Any]]
    ) -> None:
        self._summary_path = folder / "summary.json"
        self._summary = summary
        self._pending: deque[StepRecord] = deque(maxlen=_MAX_PENDING)
        self._closing = threading.Event()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = (folder / "steps.jsonl").open("w", encoding="utf-8")
            self._write([header])
            self._write_summary()
        except OSError as error:
            raise ConfigError(f"--hexgen-step-log={folder}: cannot be written: {error}") from error
        self._thread = threading.Thread(target=self._run, name="hexgen-step-log", daemon=True)
        self._thread.start()

    def add(self, record: StepRecord) -> None:
        """Hand a record over."""
        self._pending.append(record)

    def close(self) -> None:
        """Write what is left and stop."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing.wait(PERIOD_S):
                self._flush()
            self._flush()
            self._lines.close()
        except OSError as error:
            logger.error("The step log ends here: %s", error)

    def _flush(self) -> None:
        rows = []
        while self._pending:
            rows.append(dataclasses.asdict(self._pending.popleft()))
        if rows:
            self._write(rows)
            self._write_summary()

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self._lines.writelines(json.dumps(row) + "\n" for row in rows)
        self._lines.flush()

    def _write_summary(self) -> None:
        draft = self._summary_path.with_suffix(".draft")
        draft.write_text(json.dumps(self._summary(), indent=2) + "\n", encoding="utf-8")
        draft.replace(self._summary_path)
