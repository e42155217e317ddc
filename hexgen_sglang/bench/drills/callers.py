"""What callers of a drill ask, and whether they got it: once, whole, token by token.

Runs in the drill's event loop. The emulated model's next token depends on how long the sequence
is and on nothing else, so every answer is known beforehand from one answer of a quiet worker.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

# Output tokens after which the emulated model's answers repeat.
PERIOD = 251


@dataclass(frozen=True)
class KnownAnswers:
    """The emulated model's answers, by the length of the prompt.

    Attributes:
        ids: its answer to a prompt of length `start`, one period long.
        stable: prompt lengths after which `stable_tokens` tokens are read back from their text
            as the same tokens, so that a stream of text can be compared, too.
    """

    start: int
    ids: tuple[int, ...]
    stable: tuple[int, ...] = ()
    stable_tokens: int = 0

    def answer(self, num_prompt_tokens: int, count: int) -> list[int]:
        """The first `count` tokens after a prompt of that length."""
        first = num_prompt_tokens - self.start
        return [self.ids[(first + place) % PERIOD] for place in range(count)]


@dataclass
class Call:
    """One request of a caller, and all that came back.

    Attributes:
        kind: "stream" and "whole" of /generate, "text": a stream of /v1/completions.
        stated_ms: what was left of the budget each time it was sent: always the same instant.
        answers: ends that the caller saw: whole answers and errors; exactly one is right.
        event_s: when each event of a stream came.
        repeated, missing: output tokens beyond, or short of, the known answer.
    """

    name: str
    kind: str
    prompt: list[int]
    count: int
    budget_ms: int
    sent_s: float = 0.0
    stated_ms: list[int] = field(default_factory=list)
    ended_s: float | None = None
    status: int | None = None
    error: str = ""
    is_broken: bool = False
    answers: int = 0
    retries: int = 0
    event_s: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    text: str = ""
    repeated: int = 0
    missing: int = 0

    @property
    def has_ended_well(self) -> bool:
        """A whole, right answer, or a clear error; once."""
        is_right = not self.error and not self.repeated and not self.missing
        return self.answers == 1 and not self.is_broken and (is_right or bool(self.error))


class Callers:
    """Sends calls to a coordinator and keeps what came back.

    Attributes:
        urls: of coordinators, asked in turn; a call that is sent again goes to the next.
    """

    def __init__(self, urls: Sequence[str], known: KnownAnswers, texts: dict[int, str]) -> None:
        self.urls = urls
        self._known = known
        self._texts = texts
        self._tasks: list[asyncio.Task[None]] = []
        self.calls: list[Call] = []

    def send(self, call: Call, *, again_until_s: float = 0.0) -> None:
        """Send it now; a call whose connection breaks is sent anew for so many seconds."""
        self.calls.append(call)
        self._tasks.append(asyncio.create_task(self._run(call, len(self.calls), again_until_s)))

    @property
    def num_open(self) -> int:
        """Calls that have not ended."""
        return sum(call.ended_s is None for call in self.calls)

    async def finish(self, timeout_s: float) -> None:
        """Wait until all have ended; those that have not by then count as lost."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, call: Call, number: int, again_s: float) -> None:
        call.sent_s = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        while True:
            try:
                # A session of its own, as callers of their own have.
                async with aiohttp.ClientSession(timeout=timeout) as session:
                    url = self.urls[(number + call.retries) % len(self.urls)]
                    await self._ask(session, url, call)
            except (aiohttp.ClientError, ConnectionError) as error:
                if time.monotonic() - call.sent_s >= again_s:
                    call.is_broken = True
                    call.error = f"{type(error).__name__}: {error}"
                    break
                call.retries += 1
                call.ids, call.text, call.event_s = [], "", []
                await asyncio.sleep(0.2)
                continue
            break
        call.ended_s = time.monotonic()

    async def _ask(self, session: aiohttp.ClientSession, url: str, call: Call) -> None:
        elapsed_ms = 1_000 * (time.monotonic() - call.sent_s)
        call.stated_ms.append(max(1, round(call.budget_ms - elapsed_ms)))
        path, body = _request(call)
        async with session.post(url + path, json=body) as response:
            call.status = response.status
            if response.status != 200 or call.kind == "whole":
                answer = await response.json()
                call.answers += 1
                if response.status != 200:
                    call.error = answer["error"]["message"]
                else:
                    self._compare(call, [], answer["output_ids"])
                return
            await self._read_stream(call, response)

    async def _read_stream(self, call: Call, response: aiohttp.ClientResponse) -> None:
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            call.event_s.append(time.monotonic())
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                call.answers += 1
                self._judge(call)
                continue
            row = json.loads(data)
            if "error" in row:
                call.answers += 1
                call.error = row["error"]["message"]
            elif call.kind == "text":
                call.text += "".join(choice["text"] for choice in row["choices"])
            else:
                before, call.ids = call.ids, row["output_ids"]
                self._compare(call, before, call.ids)
        if not call.answers:
            raise aiohttp.ClientPayloadError("the stream ended before its end")

    def _compare(self, call: Call, before: list[int], now: list[int]) -> None:
        """Each event must go on from the one before, along the known answer."""
        right = self._known.answer(len(call.prompt), call.count)
        call.repeated = max(call.repeated, len(now) - len(right))
        wrong = sum(got != told for got, told in zip(now, right, strict=False))
        call.repeated = max(call.repeated, wrong, len(before) - len(now))
        call.missing = max(0, len(right) - len(now))

    def _judge(self, call: Call) -> None:
        """At the end of a stream of text: it must be the known one."""
        if call.kind != "text":
            return
        right = self._texts[len(call.prompt)]
        if call.text != right:
            call.repeated = max(1, len(call.text) - len(right))
            call.missing = max(0, len(right) - len(call.text))


def _request(call: Call) -> tuple[str, dict[str, Any]]:
    tag = {"workflow_id": call.name, "budget_ms": call.stated_ms[-1], "final": True}
    if call.kind == "text":
        body = {"model": "default", "prompt": call.prompt, "max_tokens": call.count}
        return "/v1/completions", {**body, "stream": True, "ignore_eos": True, "hexgen": tag}
    sampling = {"max_new_tokens": call.count, "ignore_eos": True}
    body = {"input_ids": call.prompt, "sampling_params": sampling, "hexgen": tag}
    return "/generate", {**body, "stream": call.kind == "stream"}
