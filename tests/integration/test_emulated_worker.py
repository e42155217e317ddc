"""A real SGLang server with an emulated accelerator: its tokens, its caches, its seconds.

Nothing here is judged by the test's own clock: seconds come from the server's step accounting.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hexgen_sglang.core.accelerator import decode_s, prefill_s
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ProcessError
from hexgen_sglang.profiling.fit import fit_decode, fit_prefill, profile_from_measurements
from hexgen_sglang.profiling.measure import Grid, WorkerProbe, measure
from hexgen_sglang.protocol.emulation import OUTPUT_TOKENS

PROFILE = """
name = "small-card"
model = "no model"
device = "made up for tests"
tensor_parallel = { value = 1, source = "made up" }

[prefill]
base_s = { value = 0.05, source = "made up" }
per_token_s = { value = 0.0004, source = "made up" }
per_token_per_1k_context_s = { value = 0.00005, source = "made up" }
chunk_tokens = { value = 512, source = "made up" }

[decode]
base_s = { value = 0.03, source = "made up" }
per_request_s = { value = 0.002, source = "made up" }
per_1k_context_tokens_s = { value = 0.004, source = "made up" }
repeated_read_frac = { value = 0.25, source = "made up" }

[capacity]
kv_tokens = { value = 3000, source = "made up" }
max_running_requests = { value = 16, source = "made up" }

[price]
usd_per_hour = { value = 1.0, source = "made up" }

[fit]
method = "made up"
"""
CARD = profile_from_toml(PROFILE, "small-card")
"""Small on purpose: 3,000 tokens of KV cache are soon full, and 512 are one chunk."""


class Server:
    """The shared worker with the profile above, and its step log."""

    def __init__(self, worker: Any, log: Path) -> None:
        self.worker = worker
        self.processes = worker.processes
        self.url: str = worker.url
        self.log = log

    def generate(self, prompt: list[int], tokens: int, **params: Any) -> dict[str, Any]:
        sampling = {"max_new_tokens": tokens, "ignore_eos": True, **params}
        return dict(self.post("/generate", {"input_ids": prompt, "sampling_params": sampling}))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        async def send() -> Any:
            async with (
                aiohttp.ClientSession() as session,
                session.post(self.url + path, json=body) as answer,
            ):
                return await answer.json()

        return asyncio.run(send())

    def state(self) -> dict[str, Any]:
        """The emulated run's summary, over HTTP."""

        async def fetch() -> Any:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{self.url}/server_info") as answer,
            ):
                return await answer.json()

        info = asyncio.run(fetch())
        return dict(info["internal_states"][0]["hexgen_emulation"])

    def steps(self) -> list[dict[str, Any]]:
        """Every step that the server has run, once the log has caught up with it."""
        counted = sum(self.state()["num_steps"].values())
        deadline = time.monotonic() + 30
        while True:
            lines = (self.log / "steps.jsonl").read_text().splitlines()[1:]
            if len(lines) >= counted:
                return [json.loads(line) for line in lines]
            assert time.monotonic() < deadline, f"{len(lines)} of {counted} steps in the log"
            time.sleep(0.1)

    def new_steps(self, work: Callable[[], Any]) -> tuple[Any, list[dict[str, Any]]]:
        """What `work` gives, and the steps that it took."""
        before = len(self.steps())
        result = work()
        return result, self.steps()[before:]


def fresh(number: int, length: int) -> list[int]:
    """A prompt that shares no prefix with one of another number."""
    return [10 + number, *(20 + (number * 7 + place * 13) % 200 for place in range(length - 1))]


@pytest.fixture(scope="module")
def server(shared_worker: Any, tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = tmp_path_factory.mktemp("emulated")
    (folder / "card.toml").write_text(PROFILE)
    worker = shared_worker(
        name="emulated",
        emulate=folder / "card.toml",
        schedule_policy="hexgen",
        flags=(
            *("--hexgen-step-log", str(folder / "log"), "--context-length", "2500"),
            *("--schedule-conservativeness", "0.05"),
        ),
        # With the flag above: admit requests whose answers will not fit, so that SGLang must
        # retract some.
        env={"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "16"},
    )
    return Server(worker, folder / "log")


pytestmark = pytest.mark.timeout(240)


def test_answers_are_exactly_as_long_as_asked_and_always_the_same(server: Server) -> None:
    for tokens in (1, 2, 17):
        answer = server.generate(fresh(1, 40), tokens)
        assert answer["meta_info"]["completion_tokens"] == tokens == len(answer["output_ids"])
        assert answer["meta_info"]["finish_reason"]["type"] == "length"
    again = server.generate(fresh(1, 40), 17)
    assert again["output_ids"] == answer["output_ids"]


def test_a_stated_length_ends_the_answer_below_the_callers_limit(server: Server) -> None:
    for wanted in (1, 9):
        params = {"ignore_eos": False, "custom_params": {OUTPUT_TOKENS: wanted}}
        answer = server.generate(fresh(2, 40), 30, **params)
        assert answer["meta_info"]["completion_tokens"] == wanted
        assert answer["meta_info"]["finish_reason"]["type"] == "stop"


def test_text_goes_through_a_real_tokenizer_both_ways(server: Server) -> None:
    body = {"model": "any", "prompt": "select name from artists", "max_tokens": 8}
    answer = server.post("/v1/completions", body)
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["prompt_tokens"] > 3
    assert answer["choices"][0]["text"].isprintable()
    assert answer["choices"][0]["text"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"return_logprob": True}, "return_logprob"),
        ({"sampling_params": {"custom_params": {OUTPUT_TOKENS: 0}}}, OUTPUT_TOKENS),
    ],
)
def test_what_cannot_be_emulated_is_an_error_to_the_caller(
    server: Server, body: dict[str, Any], told: str
) -> None:
    answer = server.post("/generate", {"input_ids": fresh(3, 20), **body})
    assert told in answer["error"]["message"]


def test_steps_take_what_the_profile_says(server: Server) -> None:
    answer, steps = server.new_steps(lambda: server.generate(fresh(4, 300), 6))
    assert answer["meta_info"]["cached_tokens"] == 0
    first, *rest = steps
    assert first["kind"] == "prefill"
    assert first["predicted_s"] == pytest.approx(prefill_s(CARD, [(300, 0)]))
    assert [step["kind"] for step in rest[:5]] == ["decode"] * 5
    for number, step in enumerate(rest[:5]):
        assert step["context_tokens"] == 301 + number
        assert step["predicted_s"] == pytest.approx(decode_s(CARD, 1, 301 + number))
    for step in steps:
        assert step["slept_s"] >= step["predicted_s"] - 1e-6
    # The timeline: each step begins when the one before it ends, plus stated overhead.
    for before, after in itertools.pairwise(steps):
        gap = after["start_s"] - (before["start_s"] + before["predicted_s"])
        assert gap == pytest.approx(after["overhead_s"], abs=1e-6)


def test_a_cached_prefix_is_not_computed_again(server: Server) -> None:
    prefix = fresh(5, 400)
    _, cold = server.new_steps(lambda: server.generate(prefix, 1))
    answer, warm = server.new_steps(lambda: server.generate([*prefix, 15, 16, 17], 1))
    assert answer["meta_info"]["cached_tokens"] == 400
    assert cold[0]["extend_tokens"] == 400
    assert warm[0]["extend_tokens"] == 3
    assert warm[0]["context_tokens"] == 400
    assert warm[0]["predicted_s"] < cold[0]["predicted_s"] - 0.1


def test_what_requests_share_is_read_at_the_price_that_the_profile_says(server: Server) -> None:
    prefix = fresh(8, 400)
    server.generate(prefix, 1)

    def both() -> list[dict[str, Any]]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda own: server.generate([*prefix, own], 30), (15, 16)))

    _, steps = server.new_steps(both)
    together = [step for step in steps if step["kind"] == "decode" and step["num_requests"] == 2]
    assert together
    for step in together:
        predicted_s = decode_s(CARD, 2, step["context_tokens"], 400)
        assert step["predicted_s"] == pytest.approx(predicted_s)
        assert predicted_s < decode_s(CARD, 2, step["context_tokens"]) - 0.001


@pytest.mark.parametrize("workflows", [["one"] * 4, ["one", "one", "two", "two"]])
def test_siblings_wait_while_one_of_them_computes_their_prefix(
    server: Server, workflows: list[str]
) -> None:
    """Four prompts of 300 shared tokens and 5 own ones, while another request keeps the engine
    busy: each workflow computes the prefix once, or finds it computed by the other.
    """
    number = 40 + len(set(workflows))
    prefix = fresh(number, 300)

    def ask(place: int) -> dict[str, Any]:
        tag = {"workflow_id": f"{workflows[place]}-{number}", "siblings": 4}
        own = fresh(100 + place, 5)
        return server.generate([*prefix, *own], 2, custom_params={"hexgen": tag})

    def burst() -> list[dict[str, Any]]:
        with ThreadPoolExecutor(5) as pool:
            busy = pool.submit(server.generate, fresh(50 + number, 20), 40)
            answers = list(pool.map(ask, range(4)))
            busy.result()
            return answers

    answers, steps = server.new_steps(burst)
    computed = sum(step["extend_tokens"] for step in steps) - 20
    assert 300 + 4 * 5 <= computed <= len(set(workflows)) * 300 + 4 * 5
    assert sum(answer["meta_info"]["cached_tokens"] for answer in answers) == 4 * 305 - computed


def test_a_long_prompt_is_computed_in_chunks(server: Server) -> None:
    answer, steps = server.new_steps(lambda: server.generate(fresh(6, 1_200), 1))
    assert answer["meta_info"]["completion_tokens"] == 1
    prefills = [step for step in steps if step["kind"] == "prefill"]
    assert [step["extend_tokens"] for step in prefills] == [512, 512, 176]
    assert prefills[2]["predicted_s"] == pytest.approx(prefill_s(CARD, [(176, 1_024)]))


def test_requests_share_steps_and_a_full_cache_retracts_without_harm(server: Server) -> None:
    """Ten requests of at least 500 tokens do not fit 3,000: SGLang queues and retracts."""

    def burst() -> list[dict[str, Any]]:
        with ThreadPoolExecutor(10) as pool:
            return list(pool.map(lambda i: server.generate(fresh(20 + i, 250), 250), range(10)))

    answers, steps = server.new_steps(burst)
    assert [answer["meta_info"]["completion_tokens"] for answer in answers] == [250] * 10
    assert max(step["num_requests"] for step in steps if step["kind"] == "decode") > 4
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0
    alone = server.generate(fresh(20, 250), 250)
    assert alone["output_ids"] == answers[0]["output_ids"]


def test_the_run_adds_up(server: Server) -> None:
    """Runs last: drift and overhead of everything above, by the server's own accounting."""
    summary = server.state()
    steps = server.steps()
    assert summary["num_steps"]["decode"] == sum(step["kind"] == "decode" for step in steps)
    assert summary["num_steps"]["prefill"] == sum(step["kind"] == "prefill" for step in steps)
    total_s = sum(step["predicted_s"] for step in steps)
    assert sum(summary["predicted_s"].values()) == pytest.approx(total_s, rel=1e-6)
    assert abs(summary["drift_frac"]) < 0.01
    assert summary["valid"] is (summary["overhead_frac"] <= 0.10)
    on_disk = json.loads((server.log / "summary.json").read_text())
    assert on_disk["num_steps"] == summary["num_steps"]


def test_profiling_the_worker_recovers_its_profile(server: Server) -> None:
    grid = Grid(
        prompt_tokens=(64, 512, 1_024, 2_000),
        cached=((128, 1_024), (64, 2_000)),
        batches=((1, 32), (4, 32), (8, 32), (1, 1_500), (2, 1_000)),
        output_tokens=12,
        repeats=1,
    )

    async def run() -> Any:
        async with WorkerProbe(server.url, seed=1) as probe:
            facts = await probe.facts()
            return facts, await measure(probe, facts, grid, lambda line: None)

    facts, (prefills, decodes) = asyncio.run(run())
    assert (facts.kv_tokens, facts.chunk_tokens) == (3_000, 512)
    assert facts.max_running_requests == 16
    profile = profile_from_measurements(
        "measured",
        "an emulated card",
        facts,
        fit_prefill(prefills, facts.chunk_tokens),
        fit_decode(decodes),
        None,
    )
    # A busy host lengthens steps; the emulated ones are 100 ms and more for prefill.
    for chunks in ([(512, 0)], [(64, 1_000)], [(512, 1_500)]):
        assert prefill_s(profile, chunks) == pytest.approx(prefill_s(CARD, chunks), rel=0.15)
    for requests, context in ((1, 100), (8, 400), (2, 2_000)):
        found = decode_s(profile, requests, context)
        assert found == pytest.approx(decode_s(CARD, requests, context), rel=0.08)
    per_token_s = profile.prefill.per_token_s.value
    assert per_token_s == pytest.approx(CARD.prefill.per_token_s.value, rel=0.15)


def test_a_scale_beyond_sglangs_own_speed_is_refused_before_anything_starts(
    shared_worker: Any, tmp_path: Path
) -> None:
    (tmp_path / "card.toml").write_text(PROFILE)
    with pytest.raises(ProcessError) as caught:
        shared_worker(
            name="too-fast",
            emulate=tmp_path / "card.toml",
            flags=("--hexgen-time-scale", "20"),
        )
    assert "--hexgen-time-scale=20.0: must be from 0.01 to 8.0" in str(caught.value)
