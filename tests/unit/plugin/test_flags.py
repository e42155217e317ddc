"""Our flags: what a command line becomes, and what is refused at launch."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin.config import (
    ENVIRONMENT_VARIABLE,
    PluginConfig,
    forget_exported,
)
from hexgen_sglang.plugin.flags import FLAGS, add_flags, config_from
from hexgen_sglang.transport.zmq_link import make_keys

LINK = ("--hexgen-coordinator", "tcp://127.0.0.1:5555")
HEXGEN = ("--schedule-policy", "hexgen")


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--schedule-policy", choices=["fcfs", "lpm"], default="fcfs")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--ssl-certfile")
    parser.add_argument("--dp-size", type=int, default=1)
    add_flags(parser)
    return parser.parse_args(argv)


def config(*argv: str) -> PluginConfig | None:
    return config_from(parse(*argv))


def test_a_command_line_without_ours_asks_for_nothing() -> None:
    assert config("--schedule-policy", "lpm", "--port", "1234") is None


def test_the_policy_alone_orders_the_queue_and_opens_no_link() -> None:
    assert config(*HEXGEN) == PluginConfig(ordering="least_slack")


def test_ordering_and_its_settings() -> None:
    asked = config(*HEXGEN, "--hexgen-ordering", "fcfs")
    assert asked == PluginConfig(ordering="fcfs")
    asked = config(*HEXGEN, "--hexgen-best-effort-slack", "2.5")
    assert asked == PluginConfig(
        ordering="least_slack", ordering_settings={"best_effort_slack_s": 2.5}
    )


def test_a_link_works_with_any_policy() -> None:
    asked = config("--schedule-policy", "lpm", *LINK, "--port", "4000")
    assert asked is not None
    assert asked.ordering is None
    assert asked.coordinators == ("tcp://127.0.0.1:5555",)
    assert asked.url == "http://127.0.0.1:4000"
    assert asked.worker_id is not None
    assert asked.worker_id.endswith(":4000")


def test_names_and_address_for_the_coordinator_can_be_stated() -> None:
    stated = ("--hexgen-worker-id", "left", "--hexgen-hardware", "a100")
    asked = config(*HEXGEN, *LINK, *stated, "--hexgen-advertise-url", "https://gpu-1:8443/")
    assert asked is not None
    assert (asked.worker_id, asked.hardware) == ("left", "a100")
    assert asked.url == "https://gpu-1:8443"


def test_prefixes_are_kept_only_when_asked_for() -> None:
    plain, asked = config(*LINK), config(*LINK, "--hexgen-retain-prefixes", "0.4")
    assert plain is not None
    assert asked is not None
    assert (plain.retained_share, asked.retained_share) == (0.0, 0.4)


def test_prefixes_are_computed_ahead_only_when_asked_for() -> None:
    plain, asked = config(*LINK), config(*LINK, "--hexgen-prewarm", "0.2")
    assert plain is not None
    assert asked is not None
    assert (plain.prewarm_share, asked.prewarm_share) == (0.0, 0.2)
    assert asked.retained_share == 0.0


@pytest.mark.parametrize(
    "flag", [flag for flag in FLAGS if flag.needs is not None], ids=lambda flag: flag.name
)
def test_a_flag_without_the_one_it_needs_is_refused(flag) -> None:
    with pytest.raises(ConfigError, match=rf"{flag.name}=1.*: needs {flag.needs}"):
        config(flag.name, "1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((*HEXGEN, "--hexgen-ordering", "best"), "--hexgen-ordering=best: must be one of fcfs"),
        ((*HEXGEN, "--hexgen-best-effort-slack", "-1"), "slack=-1.0: must be a finite number >= 0"),
        ((*HEXGEN, "--hexgen-best-effort-slack", "nan"), "slack=nan: must be a finite number >= 0"),
        (
            (*HEXGEN, "--hexgen-ordering", "fcfs", "--hexgen-best-effort-slack", "1"),
            "--hexgen-best-effort-slack=1.0: no setting of fcfs",
        ),
        (("--hexgen-coordinator", "127.0.0.1:5555"), "must be tcp://HOST:PORT"),
        (("--hexgen-coordinator", "tcp://127.0.0.1:99999"), "must be tcp://HOST:PORT"),
        (("--hexgen-coordinator", "tcp://10.0.0.9:5555"), "CURVE keys are required"),
        ((LINK[0], f"{LINK[1]},tcp://10.0.0.9:5555"), "CURVE keys are required"),
        ((LINK[0], f"{LINK[1]}, {LINK[1]}"), "one of them is there twice"),
        ((*LINK, "--hexgen-worker-id", "two words"), "--hexgen-worker-id='two words'"),
        ((*LINK, "--hexgen-worker-id", "x" * 65), "--hexgen-worker-id='x"),
        ((*LINK, "--hexgen-advertise-url", "gpu-1:8443"), "--hexgen-advertise-url='gpu-1:8443'"),
        ((*LINK, "--hexgen-hardware", "x" * 65), "--hexgen-hardware='x"),
        ((*LINK, "--hexgen-keys", "/no/such/folder"), "--hexgen-keys=/no/such/folder: no such"),
        ((*LINK, "--hexgen-retain-prefixes", "1.5"), "prefixes=1.5: must be 0 to 1"),
        ((*LINK, "--hexgen-retain-prefixes", "nan"), "prefixes=nan: must be 0 to 1"),
        ((*LINK, "--hexgen-prewarm", "-0.1"), "--hexgen-prewarm=-0.1: must be 0 to 1"),
        ((*LINK, "--dp-size", "2"), "--dp-size=2: must be 1 with --hexgen-coordinator"),
        (("--hexgen-emulate", "/no/such/profile.toml"), "/no/such/profile.toml"),
    ],
)
def test_bad_values_are_refused_at_launch(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(*argv)
    assert message in str(refused.value)


def test_keys_are_read_at_launch(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    away = ("--hexgen-coordinator", "tcp://10.0.0.9:5555", "--hexgen-keys", str(tmp_path / "keys"))
    asked = config(*away, "--host", "10.0.0.7")
    assert asked is not None
    assert asked.keys == str(tmp_path / "keys")
    (tmp_path / "keys" / "worker.secret").unlink()
    with pytest.raises(ConfigError, match=r"worker\.secret"):
        config(*away, "--host", "10.0.0.7")


def test_our_policy_is_a_choice_and_foreign_names_stay_refused() -> None:
    assert parse(*HEXGEN).schedule_policy == "hexgen"
    with pytest.raises(argparse.ArgumentError, match="invalid choice: 'other'"):
        parse("--schedule-policy", "other")


def test_settings_travel_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert PluginConfig.from_environment() is None
    asked = config(*HEXGEN, *LINK, "--hexgen-best-effort-slack", "7")
    assert asked is not None
    asked.export()
    assert PluginConfig.from_environment() == asked
    forget_exported()
    assert PluginConfig.from_environment() is None


@pytest.mark.parametrize("text", ["", "no json", '{"unknown": 1}', '{"ordering": "two words"}'])
def test_damaged_settings_are_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, text)
    with pytest.raises(ConfigError, match=ENVIRONMENT_VARIABLE):
        PluginConfig.from_environment()
