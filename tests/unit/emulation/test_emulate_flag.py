"""`--hexgen-emulate` on a command line: what it sets, what it leaves, what it refuses."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.accelerator_toml import profile_to_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.models.emulated import ANSWER_FILE, NUM_ANSWER_TOKENS
from hexgen_sglang.models.tiny import make_tiny_model
from hexgen_sglang.plugin import flags
from hexgen_sglang.plugin.emulation import launch

Profiles = Callable[..., AcceleratorProfile]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`prepare` chooses the platform in the environment; leave none of it behind."""
    monkeypatch.setenv("SGLANG_PLATFORM", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def profile_path(linear_profile: Profiles, tmp_path: Path) -> Path:
    path = tmp_path / "card.toml"
    path.write_text(profile_to_toml(linear_profile(step_s=0.04, kv_tokens=70_000)))
    return path


def parser() -> argparse.ArgumentParser:
    """The part of SGLang's parser that matters here, with its defaults."""
    made = argparse.ArgumentParser()
    made.add_argument("--model-path", "--model", required=True)
    made.add_argument("--schedule-policy", default="fcfs", choices=["fcfs", "lpm"])
    for name in ("tokenizer-path", "served-model-name", "attention-backend", "device"):
        made.add_argument(f"--{name}")
    for name in ("sampling-backend", "grammar-backend", "speculative-algorithm", "log-level-http"):
        made.add_argument(f"--{name}")
    for name in ("context-length", "max-total-tokens", "max-running-requests"):
        made.add_argument(f"--{name}", type=int)
    made.add_argument("--chunked-prefill-size", type=int)
    made.add_argument("--tp-size", type=int, default=1)
    made.add_argument("--decode-log-interval", type=int, default=40)
    made.add_argument("--load-format", default="auto")
    for name in ("skip-server-warmup", "sleep-on-idle", "enable-cache-report"):
        made.add_argument(f"--{name}", action="store_true")
    flags.add_flags(made)
    return made


def prepared(profile: AcceleratorProfile, *arguments: str) -> argparse.Namespace:
    args = parser().parse_args(arguments)
    launch.prepare(args, profile)
    return args


def test_without_the_flag_a_model_is_still_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--schedule-policy", "hexgen"])
    assert "--model-path" in capsys.readouterr().err


def test_the_profile_sets_what_the_server_needs(
    profile_path: Path, linear_profile: Profiles
) -> None:
    profile = linear_profile(step_s=0.04, kv_tokens=70_000)
    args = prepared(profile, "--hexgen-emulate", str(profile_path))
    assert args.max_total_tokens == 70_000
    assert args.chunked_prefill_size == profile.prefill.chunk_tokens.value
    assert args.max_running_requests == profile.capacity.max_running_requests.value
    assert args.served_model_name == profile.model
    assert args.load_format == "dummy"
    assert args.skip_server_warmup
    model = Path(args.model_path)
    config = json.loads((model / "config.json").read_text())
    assert config["max_position_embeddings"] == args.context_length == 32_768
    assert config["num_hidden_layers"] == 1
    assert not list(model.glob("*.safetensors"))
    assert (Path(args.tokenizer_path) / "tokenizer.json").is_file()


def test_flags_that_were_given_win(profile_path: Path, linear_profile: Profiles) -> None:
    args = prepared(
        linear_profile(),
        *("--max-total-tokens", "4096", "--chunked-prefill-size", "256"),
        *("--hexgen-emulate", str(profile_path), "--context-length", "2048"),
        *("--served-model-name", "mine"),
    )
    assert (args.max_total_tokens, args.chunked_prefill_size) == (4_096, 256)
    assert (args.context_length, args.served_model_name) == (2_048, "mine")
    config = json.loads((Path(args.model_path) / "config.json").read_text())
    assert config["max_position_embeddings"] == 2_048


def test_a_model_path_names_the_tokenizer(profile_path: Path, linear_profile: Profiles) -> None:
    tokenizer = str(make_tiny_model(context_tokens=256))
    arguments = ("--model-path", tokenizer, "--hexgen-emulate", str(profile_path))
    args = prepared(linear_profile(), *arguments)
    assert args.tokenizer_path == tokenizer
    assert args.model_path != tokenizer


def test_answers_are_plain_text_and_never_the_end(
    profile_path: Path, linear_profile: Profiles
) -> None:
    from tokenizers import Tokenizer

    args = prepared(linear_profile(), "--hexgen-emulate", str(profile_path))
    answer = json.loads((Path(args.model_path) / ANSWER_FILE).read_text())
    tokenizer = Tokenizer.from_file(str(Path(args.tokenizer_path) / "tokenizer.json"))
    assert len(set(answer["token_ids"])) == NUM_ANSWER_TOKENS
    assert answer["end_token_id"] not in answer["token_ids"]
    text = tokenizer.decode(answer["token_ids"])
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize(
    ("flag", "value"), [("--tp-size", "2"), ("--speculative-algorithm", "EAGLE")]
)
def test_what_cannot_be_emulated_is_refused(
    profile_path: Path, linear_profile: Profiles, flag: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=f"{flag}={value}: must be"):
        prepared(linear_profile(), "--hexgen-emulate", str(profile_path), flag, value)


def test_a_scale_that_sglang_cannot_follow_is_refused(linear_profile: Profiles) -> None:
    profile = linear_profile(step_s=0.04)
    launch.check_time_scale(profile, 10.0)
    for scale in (10.5, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--hexgen-time-scale"):
            launch.check_time_scale(profile, scale)


def test_a_card_with_short_steps_can_still_run_at_its_own_speed(linear_profile: Profiles) -> None:
    launch.check_time_scale(linear_profile(step_s=0.001), 1.0)


def test_the_flags_become_settings(profile_path: Path, tmp_path: Path) -> None:
    args = parser().parse_args(
        [
            *("--hexgen-emulate", str(profile_path), "--hexgen-time-scale", "2"),
            *("--hexgen-step-log", str(tmp_path / "log")),
        ]
    )
    config = flags.config_from(args)
    assert config is not None
    assert config.emulate == str(profile_path)
    assert config.time_scale == 2.0
    assert config.step_log == str(tmp_path / "log")
    assert config.ordering is None
    assert config.hardware == "linear"


@pytest.mark.parametrize("flag", ["--hexgen-time-scale", "--hexgen-step-log"])
def test_flags_of_an_emulated_run_need_one(flag: str) -> None:
    args = parser().parse_args(["--model-path", "m", flag, "2"])
    with pytest.raises(ConfigError, match=f"{flag}=.*needs --hexgen-emulate"):
        flags.config_from(args)
