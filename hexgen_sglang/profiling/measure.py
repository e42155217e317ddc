"""Measuring a live worker over HTTP: one request at a time for prefill, batches for decode.

Runs in the command line, against an otherwise idle SGLang server on any hardware. Prompts are
random token ids, new for every measurement, so that no prefix is cached by accident.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import aiohttp

from hexgen_sglang.core.errors import WorkerUnavailableError
from hexgen_sglang.profiling.samples import DecodeSample, PrefillSample, WorkerFacts
from hexgen_sglang.protocol.emulation import STATE_FIELD

# Ids that every vocabulary has, and that no tokenizer of ours or of a Llama uses for control.
_FIRST_ID, _LAST_ID = 10, 249
_REQUEST_TIMEOUT_S = 600.0
_FLUSH_ATTEMPTS, _FLUSH_PAUSE_S = 50, 0.1
# Prompts that may stand before a measured one, and how long one must take: several times what
# a request needs from the client to the worker's queue.
_BLOCKER_TOKENS = (64, 256, 1_024, 4_096, 8_192)
_BLOCKER_S = 0.12
# Tokens of each request that are not measured: the batch is still forming.
_WARM_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured. Combinations that do not fit the worker are left out.

    Attributes:
        prompt_tokens: lengths for prefill, nothing cached.
        cached: (uncached, cached) lengths for prefill behind a cached prefix.
        batches: (requests, context tokens of each) for decode.
        output_tokens: of each decoding request; at least 6.
        repeats: of every cell; the median counts.
    """

    prompt_tokens: tuple[int, ...] = (32, 128, 512, 1_024, 2_048, 4_096, 8_192, 16_384)
    cached: tuple[tuple[int, int], ...] = ((128, 2_048), (512, 4_096), (128, 8_192))
    batches: tuple[tuple[int, int], ...] = (
        *((1, 64), (4, 64), (8, 64), (16, 64)),
        *((1, 2_048), (4, 2_048), (8, 1_024), (1, 8_192), (2, 8_192)),
    )
    output_tokens: int = 32
    repeats: int = 3


class WorkerProbe:
    """Requests to one worker. Use as an asynchronous context manager.

    Args:
        url: base address, e.g. http://127.0.0.1:30000.
        seed: of the random prompts.
    """

    def __init__(self, url: str, seed: int | None = None) -> None:
        self._url = url.rstrip("/")
        self._random = random.Random(seed)
        self._session: aiohttp.ClientSession | None = None
        self._blocker = (_BLOCKER_TOKENS[0], 0.0)

    async def __aenter__(self) -> WorkerProbe:
        timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def facts(self) -> WorkerFacts:
        """What the worker says of itself.

        Raises:
            WorkerUnavailableError: it does not answer, or not as an SGLang server does.
        """
        info = await self._json("GET", "/server_info")
        try:
            state = info["internal_states"][0]
            chunk_tokens = int(info.get("chunked_prefill_size") or -1)
            if chunk_tokens < 1:
                chunk_tokens = int(info["max_prefill_tokens"])
            return WorkerFacts(
                model=str(info.get("served_model_name") or info["model_path"]),
                sglang_version=str(info["version"]),
                kv_tokens=int(info["max_total_num_tokens"]),
                chunk_tokens=min(chunk_tokens, int(info["max_total_num_tokens"])),
                max_running_requests=int(state["effective_max_running_requests_per_dp"]),
                context_tokens=int(info["max_req_input_len"]),
                tensor_parallel=int(info["tp_size"]),
                time_scale=float(state.get(STATE_FIELD, {}).get("time_scale", 1.0)),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise WorkerUnavailableError(
                f"{self._url}/server_info: not as SGLang 0.5.17 to 0.5.23 answers: {error!r}"
            ) from error

    async def prepare(self, longest_tokens: int) -> None:
        """Warm the worker up, and find a prompt long enough to hide another's arrival.

        Raises:
            WorkerUnavailableError: the worker fails or is not idle.
        """
        await self._flush()
        await self._generate(self._tokens(16), 1)
        for number in _BLOCKER_TOKENS:
            if number >= longest_tokens:
                break
            start_s = time.perf_counter()
            await self._generate(self._tokens(number), 1)
            seconds = time.perf_counter() - start_s
            self._blocker = (number, seconds)
            if seconds >= _BLOCKER_S:
                return

    async def prefill(self, num_uncached: int, num_cached: int) -> PrefillSample:
        """Seconds of one request's prefill, behind a prefix cached just before.

        Another prompt is sent shortly before; the request waits behind it, and the time
        between the two first tokens is the request's prefill, without HTTP and queueing. The
        counts of the sample are those that the worker reports.

        Raises:
            WorkerUnavailableError: the worker fails, is not idle, or ran both at once.
        """
        await self._flush()
        prefix = self._tokens(num_cached)
        if prefix:
            await self._generate(prefix, 1)
        prompt = prefix + self._tokens(num_uncached)
        blocker_tokens, blocker_s = self._blocker
        blocker = asyncio.create_task(self._stream(self._tokens(blocker_tokens), 1))
        await asyncio.sleep(blocker_s / 4)
        (blocked, _), (answered, cached) = await asyncio.gather(blocker, self._stream(prompt, 1))
        seconds = answered[0][0] - blocked[0][0]
        if seconds <= 0:
            raise WorkerUnavailableError(
                f"a prompt of {num_uncached} tokens was not run after the one before it; is the "
                "worker busy?"
            )
        return PrefillSample(len(prompt) - cached, cached, seconds)

    async def decode(
        self, num_requests: int, context_tokens: int, output_tokens: int
    ) -> DecodeSample:
        """Mean step of a batch, over the time in which all its requests decode.

        Raises:
            WorkerUnavailableError: the requests never decoded together.
        """
        await self._flush()
        prompts = [self._tokens(context_tokens) for _ in range(num_requests)]
        answers = await asyncio.gather(*(self._stream(p, output_tokens) for p in prompts))
        streams = [stream for stream, _ in answers]
        begin_s = max(_instant_of(stream, _WARM_TOKENS) for stream in streams)
        end_s = min(stream[-1][0] for stream in streams)
        steps_s, contexts = [], []
        for stream in streams:
            inside = [(at_s, count) for at_s, count in stream if begin_s <= at_s <= end_s]
            if len(inside) > 1 and inside[-1][1] > inside[0][1]:
                num_steps = inside[-1][1] - inside[0][1]
                steps_s.append((inside[-1][0] - inside[0][0]) / num_steps)
                contexts.append(context_tokens + (inside[0][1] + inside[-1][1] - 1) / 2)
        if len(steps_s) < num_requests:
            raise WorkerUnavailableError(
                f"{num_requests} requests with {context_tokens} tokens never decoded together; "
                "is the worker busy, or its batch limit lower?"
            )
        return DecodeSample(num_requests, sum(contexts), sum(steps_s) / len(steps_s))

    def _tokens(self, number: int) -> list[int]:
        return self._random.choices(range(_FIRST_ID, _LAST_ID + 1), k=number)

    async def _flush(self) -> None:
        """Empty the prefix cache; SGLang does so only while idle."""
        for _ in range(_FLUSH_ATTEMPTS):
            async with self._open().post(f"{self._url}/flush_cache") as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(_FLUSH_PAUSE_S)
        raise WorkerUnavailableError(f"{self._url}/flush_cache: refused; the worker is not idle")

    async def _generate(self, prompt: Sequence[int], output_tokens: int) -> dict[str, Any]:
        answer = await self._json("POST", "/generate", _body(prompt, output_tokens))
        return dict(answer)

    async def _stream(
        self, prompt: Sequence[int], output_tokens: int
    ) -> tuple[list[tuple[float, int]], int]:
        """Instants and how many tokens there were by then; how much of the prompt was cached."""
        seen: list[tuple[float, int]] = []
        cached = 0
        body = {**_body(prompt, output_tokens), "stream": True}
        async with self._open().post(f"{self._url}/generate", json=body) as answer:
            await self._check(answer, "/generate")
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise WorkerUnavailableError(f"{self._url}/generate: {event['error']}")
                seen.append((time.perf_counter(), event["meta_info"]["completion_tokens"]))
                cached = event["meta_info"]["cached_tokens"]
        if not seen:
            raise WorkerUnavailableError(f"{self._url}/generate: streamed nothing")
        return seen, cached

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            async with self._open().request(method, self._url + path, json=body) as answer:
                await self._check(answer, path)
                return await answer.json()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise WorkerUnavailableError(f"{self._url}{path}: {error!r}") from error

    async def _check(self, answer: aiohttp.ClientResponse, path: str) -> None:
        if answer.status != 200:
            text = (await answer.text())[:300]
            raise WorkerUnavailableError(f"{self._url}{path}: status {answer.status}: {text}")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use `async with WorkerProbe(...)`")
        return self._session


async def measure(
    probe: WorkerProbe, facts: WorkerFacts, grid: Grid, progress: Callable[[str], None]
) -> tuple[list[PrefillSample], list[DecodeSample]]:
    """Measure every cell of the grid that fits the worker; one sample a cell.

    `progress` gets one line before each cell. The first request of the run is not measured.

    Raises:
        WorkerUnavailableError: the worker fails or is not idle.
    """
    longest = min(facts.context_tokens, facts.kv_tokens * 9 // 10)
    cells = [(length, 0) for length in grid.prompt_tokens] + list(grid.cached)
    await probe.prepare(longest)
    prefills = []
    for uncached, cached in cells:
        if uncached + cached >= longest:
            continue
        progress(f"prefill: {uncached} tokens behind {cached} cached ones")
        repeated = [await probe.prefill(uncached, cached) for _ in range(grid.repeats)]
        prefills.append(sorted(repeated, key=lambda sample: sample.seconds)[len(repeated) // 2])
    decodes = []
    for num_requests, context in grid.batches:
        needed = num_requests * (context + grid.output_tokens)
        too_many = num_requests > facts.max_running_requests
        if too_many or needed >= longest or context + grid.output_tokens >= facts.context_tokens:
            continue
        progress(f"decode: {num_requests} requests with {context} tokens each")
        steps = [
            await probe.decode(num_requests, context, grid.output_tokens)
            for _ in range(grid.repeats)
        ]
        seconds = median(sample.seconds for sample in steps)
        decodes.append(DecodeSample(num_requests, steps[0].num_context_tokens, seconds))
    return prefills, decodes


def _body(prompt: Sequence[int], output_tokens: int) -> dict[str, Any]:
    sampling = {"max_new_tokens": output_tokens, "ignore_eos": True, "temperature": 0}
    return {"input_ids": list(prompt), "sampling_params": sampling}


def _instant_of(stream: list[tuple[float, int]], number: int) -> float:
    """When the request had at least `number` tokens."""
    for at_s, count in stream:
        if count >= number:
            return at_s
    raise WorkerUnavailableError(f"a request gave fewer than {number} tokens")
