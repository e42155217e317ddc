"""Has every worker compute the templates that prompts begin with, before requests need them.

The operator states them as a folder of texts. A worker that becomes ready, at the start or again
after it was away, is asked for one token behind each, one after the other, while it serves already.
What was computed is in the record of what it has, as if requests had been sent there.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.incoming import GENERATE
from hexgen_sglang.coordinator.live_request import AttemptFailed
from hexgen_sglang.coordinator.prompt import shape_of_texts
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.worker_client import WorkerClient
from hexgen_sglang.core.errors import ConfigError

log = logging.getLogger(__name__)

_MAX_TEMPLATES = 256
_MAX_BYTES = 1_048_576
_TIMEOUT_S = 120.0


def read_templates(folder: Path) -> tuple[str, ...]:
    """The texts of a folder's *.txt files, by name.

    Raises:
        ConfigError: no such folder, none or too many files, or one that is empty, too long or
            no text.
    """
    paths = sorted(folder.glob("*.txt"))
    if not 1 <= len(paths) <= _MAX_TEMPLATES:
        raise ConfigError(
            f"warm={str(folder)!r}: must be a folder with 1 to {_MAX_TEMPLATES} files *.txt, "
            f"has {len(paths)}"
        )
    texts = []
    for path in paths:
        try:
            raw = path.read_bytes()
            texts.append(raw.decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from error
        if not 1 <= len(raw) <= _MAX_BYTES:
            raise ConfigError(f"{path}: {len(raw)} bytes: must be 1 to {_MAX_BYTES}")
    return tuple(texts)


class Warmer:
    """Sends the templates. Make and close it on the event loop.

    Args:
        templates: the texts.
        client: towards the workers.
        estimates: told of what is at which worker then.
        on_end: told the worker id and "warmed" or "failed" of each text.
    """

    def __init__(
        self,
        templates: Sequence[str],
        client: WorkerClient,
        estimates: Estimates,
        on_end: Callable[[str, str], None],
    ) -> None:
        self._templates = templates
        self._client = client
        self._estimates = estimates
        self._on_end = on_end
        self._tasks: dict[Worker, asyncio.Task[None]] = {}

    def ready(self, worker: Worker) -> None:
        """The worker takes requests from now on."""
        if self._templates and worker not in self._tasks:
            task = asyncio.get_running_loop().create_task(self._warm(worker))
            self._tasks[worker] = task
            task.add_done_callback(lambda _: self._tasks.pop(worker, None))

    async def close(self) -> None:
        """Stop."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _warm(self, worker: Worker) -> None:
        """One template after the other; the first that fails ends it."""
        for text in self._templates:
            sampling = {"max_new_tokens": 1, "temperature": 0}
            rid = f"warm-{uuid.uuid4().hex}"
            body = msgspec.json.encode({"text": text, "sampling_params": sampling, "rid": rid})
            headers = {"content-type": "application/json"}
            url = worker.url + GENERATE
            try:
                async with (
                    asyncio.timeout(_TIMEOUT_S),
                    self._client.post(url, body, headers) as response,
                ):
                    await response.read()
                    is_good = response.status == 200
            except (AttemptFailed, TimeoutError) as error:
                log.warning("worker %s: a template was not computed: %s", worker.worker_id, error)
                is_good = False
            self._on_end(worker.worker_id, "warmed" if is_good else "failed")
            if not is_good:
                return
            self._estimates.prefixes.note_sent(worker.worker_id, shape_of_texts([text]).blocks)
