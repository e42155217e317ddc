"""What `--hexgen-emulate` asks of SGLang's server, in the process that parses the command line.

Flags given by the user win; what cannot be emulated is refused here, before anything starts.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from hexgen_sglang.core.accelerator import AcceleratorProfile, decode_s
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.models.emulated import make_emulated_model
from hexgen_sglang.models.tiny import make_tiny_model
from hexgen_sglang.plugin.platforms import TORCH_CPU

DEFAULT_CONTEXT_TOKENS = 32_768
# SGLang's scheduler needs 1.9 to 2.5 ms of one 2 GHz core for a step of 1 to 16 requests
# (launch/bench/emulated_workers.py). The overlap schedule hides that behind the running step only
# while steps are longer, with room for the rest of a busy machine.
SHORTEST_STEP_S = 0.004

# SGLang's flags that have no meaning without a real forward pass, and their only good value.
_ONLY = {
    "tp_size": (1,),
    "pp_size": (1,),
    "dp_size": (1, None),
    "speculative_algorithm": (None,),
    "disaggregation_mode": ("null", None),
    "is_embedding": (False, None),
    "dllm_algorithm": (None,),
    "enable_pdmux": (False, None),
    "enable_lora": (False, None),
    "lora_paths": (None,),
}


class EmulateAction(argparse.Action):
    """Stores the profile's path; --model-path is needed no longer.

    Keeps the parser's defaults on the namespace (`hexgen_defaults`), so that flags that the
    user gave can be told from those that were left alone.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.hexgen_defaults = {
            action.dest: parser.get_default(action.dest) for action in parser._actions
        }
        for action in parser._actions:
            if action.dest == "model_path":
                action.required = False


def check_time_scale(profile: AcceleratorProfile, time_scale: float) -> None:
    """Refuse a scale at which SGLang itself would take a large part of a step.

    Raises:
        ConfigError: out of range, or the shortest decode step would last less than 4 ms.
    """
    shortest_s = decode_s(profile, 1, 0)
    most = shortest_s / SHORTEST_STEP_S
    if not 0.01 <= time_scale <= max(most, 1.0):
        raise ConfigError(
            f"--hexgen-time-scale={time_scale}: must be from 0.01 to {max(most, 1.0):.1f} with "
            f"profile {profile.name}, whose shortest step is {1000 * shortest_s:.1f} ms: below "
            f"{1000 * SHORTEST_STEP_S:.0f} ms SGLang's own CPU time would distort the run"
        )


def prepare(args: argparse.Namespace, profile: AcceleratorProfile) -> None:
    """Set what the server needs on SGLang's parsed command line, in place.

    A --model-path or --tokenizer-path names the tokenizer; without one it is the tiny test
    model's. The platform is chosen in the environment, for child processes.

    Raises:
        ConfigError: a flag that cannot go with an emulated accelerator, or a tokenizer that
            cannot be loaded.
    """
    _refuse_what_is_not_emulated(args)
    defaults = args.hexgen_defaults
    os.environ["SGLANG_PLATFORM"] = TORCH_CPU
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wanted = {
        "context_length": DEFAULT_CONTEXT_TOKENS,
        "served_model_name": profile.model,
        "max_total_tokens": profile.capacity.kv_tokens.value,
        "max_running_requests": profile.capacity.max_running_requests.value,
        "chunked_prefill_size": profile.prefill.chunk_tokens.value,
        "device": "cpu",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "load_format": "dummy",
        "skip_server_warmup": True,
        "sleep_on_idle": True,
        "enable_cache_report": True,
        "decode_log_interval": 10_000,
        "log_level_http": "warning",
    }
    for name, value in wanted.items():
        if getattr(args, name) == defaults[name]:
            setattr(args, name, value)
    args.tokenizer_path = args.tokenizer_path or args.model_path or str(make_tiny_model())
    args.model_path = str(make_emulated_model(args.tokenizer_path, args.context_length))


def _refuse_what_is_not_emulated(args: argparse.Namespace) -> None:
    for name, allowed in _ONLY.items():
        value = getattr(args, name, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"--{name.replace('_', '-')}={value}: must be {allowed[0]} with --hexgen-emulate"
            )
