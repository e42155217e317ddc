"""The emulated accelerator of one scheduler process: takes batches, gives tokens in due time.

Made when a hook first asks. What a step costs is `core.accelerator`, when it runs is `clock`;
which requests form a batch, and which KV slots they use, is SGLang's own affair.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import logging
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.utils import GenerationBatchResult

from hexgen_sglang import __version__
from hexgen_sglang.core.accelerator import AcceleratorProfile, decode_s, mixed_s, prefill_s
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.models.emulated import ANSWER_FILE
from hexgen_sglang.plugin import self_check
from hexgen_sglang.plugin.config import PluginConfig
from hexgen_sglang.plugin.emulation.accounting import StepAccounting, StepRecord
from hexgen_sglang.plugin.emulation.clock import EmulatedClock, StepTiming
from hexgen_sglang.plugin.emulation.profile_file import load_profile
from hexgen_sglang.plugin.emulation.repeated import RepeatedTokens
from hexgen_sglang.plugin.emulation.step_log import StepLog
from hexgen_sglang.plugin.request_view import custom_params
from hexgen_sglang.protocol.emulation import OUTPUT_TOKENS

logger = logging.getLogger(__name__)


class EmulatedAccelerator:
    """Runs SGLang's batches on an emulated timeline.

    Args:
        profile: what steps cost.
        time_scale: emulated seconds in a real one.
        answer: token ids that answers are made of, 1-d int64.
        end_token_id: what ends an answer for which the caller has stated a length.
        step_log: folder for the step log; None: none is written.
    """

    def __init__(
        self,
        profile: AcceleratorProfile,
        time_scale: float,
        answer: torch.Tensor,
        end_token_id: int,
        step_log: Path | None,
    ) -> None:
        self._profile = profile
        self._scale = time_scale
        self._answer = answer
        self._end_token_id = end_token_id
        self._clock = EmulatedClock()
        self._accounting = StepAccounting(time_scale)
        self._zero_s = time.perf_counter()
        self._last_cpu_s = time.thread_time()
        jitter = profile.jitter
        shares_reads = profile.decode.repeated_read_frac is not None
        self._repeated = RepeatedTokens() if shares_reads else None
        self._sigma = jitter.relative_sigma.value if jitter else 0.0
        self._random = random.Random(jitter.seed if jitter else 0)
        self._log = None
        if step_log is not None:
            self._log = StepLog(step_log, self._header(), self.summary)

    def forward(self, batch: Any) -> GenerationBatchResult:
        """Put SGLang's batch on the timeline.

        With the overlap schedule it returns at once, and SGLang waits for the step's end when
        it copies the results; without, it returns at the step's end.
        """
        kind, predicted_s, extend_tokens, context_tokens = self._predict(batch)
        if self._sigma:
            # Mean 1: exp(N(-sigma^2 / 2, sigma)).
            predicted_s *= math.exp(self._random.gauss(-(self._sigma**2) / 2, self._sigma))
        timing = self._clock.launch(predicted_s / self._scale)
        cpu_s = time.thread_time()
        record = StepRecord(
            start_s=(timing.start_s - self._zero_s) * self._scale,
            kind=kind,
            num_requests=len(batch.reqs),
            extend_tokens=extend_tokens,
            context_tokens=context_tokens,
            predicted_s=predicted_s,
            slept_s=0.0,
            overhead_s=timing.overhead_s * self._scale,
            cpu_s=cpu_s - self._last_cpu_s,
        )
        self._last_cpu_s = cpu_s
        result = _EmulatedResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=self._next_tokens(batch),
        )
        result.step_end = StepEnd(self, record, timing)
        if not batch.enable_overlap:
            result.step_end.synchronize()
        return result

    def idle(self) -> None:
        """SGLang had nothing to run until now."""
        self._clock.idle()

    def summary(self) -> dict[str, Any]:
        """What the run adds up to so far, as JSON data."""
        return {"profile": self._profile.name, **self._accounting.summary()}

    def ended(self, record: StepRecord, timing: StepTiming) -> None:
        """Wait for the end of a step and write it down."""
        late_s = self._clock.wait_until(timing.end_s)
        slept_s = (timing.end_s - timing.start_s + late_s) * self._scale
        record = dataclasses.replace(record, slept_s=slept_s)
        self._accounting.add(record, timing.begins_busy_period)
        if self._log is not None:
            self._log.add(record)

    def has_ended(self, timing: StepTiming) -> bool:
        """Whether the step's end has passed."""
        return self._clock.has_passed(timing.end_s)

    def _predict(self, batch: Any) -> tuple[str, float, int, int]:
        """Kind, seconds, prompt tokens to compute, and context tokens of SGLang's batch."""
        mode = batch.forward_mode
        if mode.is_decode():
            context_tokens = batch.seq_lens_sum
            if context_tokens is None:
                context_tokens = int(batch.seq_lens_cpu.sum())
            repeated = 0 if self._repeated is None else self._repeated.count(batch)
            seconds = decode_s(self._profile, len(batch.reqs), context_tokens, repeated)
            return "decode", seconds, 0, context_tokens
        # In a mixed batch the decoding requests come last, with one new token each.
        num_decoding = len(batch.decoding_reqs) if mode.is_mixed() and batch.decoding_reqs else 0
        num_prefilling = len(batch.reqs) - num_decoding
        chunks = list(
            zip(batch.extend_lens[:num_prefilling], batch.prefix_lens[:num_prefilling], strict=True)
        )
        extend_tokens = sum(uncached for uncached, _ in chunks)
        cached_tokens = sum(cached for _, cached in chunks)
        if num_decoding == 0:
            return "prefill", prefill_s(self._profile, chunks), extend_tokens, cached_tokens
        context_tokens = sum(batch.prefix_lens[num_prefilling:]) + num_decoding
        seconds = mixed_s(self._profile, chunks, num_decoding, context_tokens)
        return "mixed", seconds, extend_tokens, cached_tokens + context_tokens

    def _next_tokens(self, batch: Any) -> torch.Tensor:
        """One token a request: decided by its position alone, so that a retracted request goes
        on as it would have, and equal prompts get equal answers.
        """
        lengths = batch.seq_lens
        tokens = self._answer[lengths % len(self._answer)]
        for row, req in enumerate(batch.reqs):
            wanted = custom_params(req).get(OUTPUT_TOKENS)  # checked at the HTTP edge
            if wanted is not None:
                # The sequence so far, without the token that this step yields.
                num_output = int(lengths[row]) - len(req.origin_input_ids)
                if num_output + 1 >= wanted:
                    tokens[row] = self._end_token_id
        return tokens

    def _header(self) -> dict[str, Any]:
        """First line of the step log."""
        return {
            "profile": self._profile.name,
            "model": self._profile.model,
            "time_scale": self._scale,
            "started_unix_s": time.time(),
            "sglang_version": importlib.metadata.version("sglang"),
            "plugin_version": __version__,
        }


class StepEnd:
    """The event that SGLang waits for before it reads a step's results."""

    __slots__ = ("_accelerator", "_record", "_timing")

    def __init__(
        self, accelerator: EmulatedAccelerator, record: StepRecord, timing: StepTiming
    ) -> None:
        self._accelerator = accelerator
        self._record: StepRecord | None = record
        self._timing = timing

    def synchronize(self) -> None:
        """Return when the step has ended; at once when that was waited for before."""
        if self._record is not None:
            record, self._record = self._record, None
            self._accelerator.ended(record, self._timing)

    def query(self) -> bool:
        """Whether the step has ended."""
        return self._accelerator.has_ended(self._timing)


class _EmulatedResult(GenerationBatchResult):
    """Results that are on the host already, but not to be read before the step's end."""

    step_end: StepEnd

    def copy_to_cpu(self, *args: Any, **kwargs: Any) -> None:
        """Instead of copying: SGLang will wait for `copy_done` as for a copy from a GPU."""
        self.copy_done = self.step_end


@functools.cache
def this_accelerator(model_path: str) -> EmulatedAccelerator:
    """The emulated accelerator of this process, for the model folder that the server was given.

    Raises:
        ConfigError: the exported settings, the profile or the model folder are damaged.
        CompatibilityError: a hook of ours is not in place.
    """
    self_check.require_loaded_hooks()
    config = PluginConfig.from_environment()
    if config is None or config.emulate is None:
        raise ConfigError("emulate: missing in this process's settings; needs a profile")
    try:
        answer = json.loads((Path(model_path) / ANSWER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model_path}: not a model folder of ours: {error}") from error
    return EmulatedAccelerator(
        load_profile(Path(config.emulate)),
        config.time_scale,
        torch.tensor(answer["token_ids"], dtype=torch.int64),
        answer["end_token_id"],
        Path(config.step_log) if config.step_log else None,
    )
