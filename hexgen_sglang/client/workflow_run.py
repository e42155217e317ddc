"""One run of an SGLang frontend program: its workflow, its stages, its end.

Lives in the caller's process, made by `frontend.py`; the executor threads of one program
share it. The HTTP exchange itself is in `generate_route.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint, global_config

from hexgen_sglang.client import interpreter
from hexgen_sglang.client.tags import Workflow
from hexgen_sglang.core.errors import ConfigError, HexgenError, WorkerUnavailableError

if TYPE_CHECKING:
    from hexgen_sglang.client.frontend import HexgenEndpoint

logger = logging.getLogger(__name__)

# Requests that only fill a prefix cache; their stage is kept apart from the program's own.
PREFIX_STAGE = "prefix"
MAX_SIBLINGS = 1024
_SETTLE_S = 0.2
_LOGPROB_OPTIONS = (
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_text_in_logprobs",
)


class WorkflowRun(RuntimeEndpoint):  # type: ignore[misc]
    """The backend of one run of a program: its workflow, and the requests it sends.

    Used by the program's executor threads at once. Made by `HexgenEndpoint.endpoint`.
    """

    def __init__(self, origin: HexgenEndpoint) -> None:
        BaseBackend.__init__(self)
        self.support_concate_and_append = False
        self.origin = origin
        self.base_url, self.api_key, self.verify = origin.base_url, origin.api_key, None
        self.model_info, self.chat_template = origin.model_info, origin.chat_template
        self.workflow = Workflow(
            type=origin.workflow_type, deadline_s=origin.deadline_s, tenant=origin.tenant
        )
        self._lock = threading.Lock()
        self._num_sent = 0
        self._num_in_flight = 0
        self._ended = False
        self._forked: list[Any] = []

    @property
    def endpoint(self) -> WorkflowRun:
        """A new workflow with the same settings: `run_batch` asks the first one for more."""
        return self.origin.endpoint

    def fork_program(self, src: Any, dst: list[Any], position_ids_offset: Any = None) -> None:
        """Number the children of a fork; a fork inside a fork multiplies."""
        siblings, index = _siblings(src)
        for position, child in enumerate(dst):
            child.hexgen_siblings = (siblings * len(dst), index * len(dst) + position)
        with self._lock:
            self._forked = [one for one in self._forked if one.worker.is_alive()] + list(dst)

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        """One completion of the program's text; (text, SGLang's meta_info)."""
        answer = self._send(s, self._body(s, sampling_params), self._stage(s, "generate"))
        return answer["text"], answer["meta_info"]

    def generate_stream(self, s: Any, sampling_params: Any) -> Any:
        """As `generate`; yields (new text, meta_info) as tokens come."""
        body = self._body(s, sampling_params)
        with self._counted():
            yield from self.origin.route.stream(
                body, self._tag(s, self._stage(s, "generate")), self.workflow.remaining_s
            )

    def select(self, s: Any, choices: Any, temperature: Any, choices_method: Any) -> Any:
        """The choice whose log-probability is highest by `choices_method`; greedy only.

        Raises:
            ConfigError: a temperature above 0.
        """
        if temperature > 1e-5:
            raise ConfigError(f"select: temperature={temperature}: only 0 is possible")
        return super().select(s, choices, temperature, choices_method)

    def commit_lazy_operations(self, s: Any) -> None:
        """Before a fork of several: fill the prefix cache, where that is wanted."""
        if self.origin.commit_prefix:
            self._send(s, prefix_body(s.text_), PREFIX_STAGE)

    def fill_image(self, s: Any) -> None:
        """Images travel with each request; nothing to do ahead."""

    def cache_prefix(self, prefix_str: str) -> None:
        """As in `HexgenEndpoint`: not part of this workflow."""
        self.origin.cache_prefix(prefix_str)

    def flush_cache(self) -> None:
        """As in `HexgenEndpoint`."""
        self.origin.flush_cache()

    def get_server_info(self) -> dict[str, Any]:
        """As in `HexgenEndpoint`."""
        return self.origin.get_server_info()

    def end_program(self, s: Any) -> None:
        """End the workflow once, when the program has ended and its requests are answered.

        Programs may end while their last `gen` still runs in the background; then a thread
        waits for it.
        """
        root = next((one for one in _as_list(s) if one.fork_start_text_pos is None), None)
        if root is None:
            return
        with self._lock:
            if self._ended:
                return
            self._ended = True
            executors = [root, *self._forked]
            self._forked = []
        if self._num_in_flight == 0 and _settle(executors, _SETTLE_S):
            self._tell_end()
        else:
            threading.Thread(target=self._end_later, args=(executors,)).start()

    def _end_later(self, executors: list[Any]) -> None:
        _settle(executors, None)
        self._tell_end()

    def _tell_end(self) -> None:
        if self._num_sent == 0:
            return
        try:
            self.origin.coordinator.end_workflow(self.workflow.workflow_id)
        except HexgenError as error:
            logger.warning(
                "workflow %s: its end was not told: %s", self.workflow.workflow_id, error
            )

    def _generate_http_request(self, s: Any, data: dict[str, Any]) -> Any:
        """What `select` sends: one body, or one for each choice as siblings of one stage."""
        stage = self._stage(s, "select")
        field = next((name for name in ("text", "input_ids") if _is_batch(data.get(name))), None)
        if field is None:
            return self._send(s, data, f"{PREFIX_STAGE}.{stage}"[:64])
        values = data[field]
        with ThreadPoolExecutor(len(values)) as pool:
            sent = [
                pool.submit(self._send, s, {**data, field: value}, stage, len(values), position)
                for position, value in enumerate(values)
            ]
            answers = [future.result() for future in sent]
        for answer in answers:
            if not answer["meta_info"].get("input_token_logprobs"):
                raise WorkerUnavailableError(
                    f"select: {self.base_url}/generate gave no meta_info.input_token_logprobs; "
                    "choices need a worker that returns log-probabilities"
                )
        return answers

    def _send(
        self, s: Any, body: dict[str, Any], stage: str, width: int = 1, position: int = 0
    ) -> dict[str, Any]:
        self._add_images(s, body)
        with self._counted():
            return self.origin.route.send(
                body, self._tag(s, stage, width, position), self.workflow.remaining_s
            )

    def _tag(self, s: Any, stage: str, width: int = 1, position: int = 0) -> Any:
        """Makes the tag at the instant of sending, so that it states what is left then."""
        siblings, index = _siblings(s)
        siblings = min(MAX_SIBLINGS, siblings * width)
        index = min(siblings - 1, index * width + position)
        return lambda: self.workflow.fields(stage, siblings=siblings, sibling_index=index)

    def _stage(self, s: Any, unnamed: str) -> str:
        return self.origin.stage_of(interpreter.variable_name(s), unnamed)

    def _body(self, s: Any, sampling_params: Any) -> dict[str, Any]:
        if sampling_params.n != 1:
            raise ConfigError(f"n={sampling_params.n}: must be 1 here; fork the program instead")
        self._handle_dtype_to_regex(sampling_params)
        body: dict[str, Any] = {
            "text": s.text_,
            "sampling_params": sampling_params.to_srt_kwargs()
            | {
                "skip_special_tokens": global_config.skip_special_tokens_in_output,
                "spaces_between_special_tokens": global_config.spaces_between_special_tokens_in_out,
            },
        }
        options = {name: getattr(sampling_params, name, None) for name in _LOGPROB_OPTIONS}
        body |= {name: value for name, value in options.items() if value is not None}
        self._add_images(s, body)
        return body

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Counts a request as out while it is."""
        with self._lock:
            self._num_sent += 1
            self._num_in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_in_flight -= 1


def workflow_of(state: Any) -> Workflow | None:
    """The workflow of a running program, from its state `s`; None on another backend."""
    backend = state.stream_executor.backend
    return backend.workflow if isinstance(backend, WorkflowRun) else None


def _siblings(executor: Any) -> tuple[int, int]:
    """(siblings, sibling_index) of an executor; (1, 0) for one that no fork made."""
    found: tuple[int, int] = getattr(executor, "hexgen_siblings", (1, 0))
    return found


def prefix_body(text: str) -> dict[str, Any]:
    """A request that only fills a prefix cache: no token is wanted."""
    return {"text": text, "sampling_params": {"max_new_tokens": 0}}


def _is_batch(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str | list)


def _as_list(s: Any) -> list[Any]:
    return s if isinstance(s, list) else [s]


def _settle(executors: list[Any], timeout_s: float | None) -> bool:
    """Wait until no executor has work left; False after `timeout_s`.

    `StreamExecutor.sync` would wait for ever on an executor whose thread died of an error.
    """
    waited_s, step_s = 0.0, 0.01
    while any(_is_busy(one) for one in executors):
        if timeout_s is not None and waited_s >= timeout_s:
            return False
        time.sleep(step_s)
        waited_s += step_s
    return True


def _is_busy(executor: Any) -> bool:
    return bool(
        executor.use_thread and executor.worker.is_alive() and executor.queue.unfinished_tasks
    )
