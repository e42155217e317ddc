"""The coordinator's configuration: strict, and printed so that it can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from hexgen_sglang.coordinator.config import (
    CoordinatorConfig,
    CoordinatorFile,
    WorkerConfig,
    as_toml,
    check_worker_url,
    load_config,
)
from hexgen_sglang.coordinator.workers import allowed_hosts
from hexgen_sglang.core.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    return path


def test_what_is_printed_reads_back_the_same(tmp_path: Path) -> None:
    config = CoordinatorFile(
        CoordinatorConfig(
            port=0,
            link="tcp://127.0.0.1:5600",
            dispatch="least_load",
            dispatch_settings={"barrier_s": 2.0},
            default_budget_ms={"text2sql": 30_000},
            allowed_worker_hosts=("gpu-1", 'odd"name', "odd\x7fname"),
        ),
        (WorkerConfig(url="http://gpu-1:30000", worker_id="a", hardware="a100"),),
    )
    assert load_config(write(tmp_path, as_toml(config))) == config


def test_whole_numbers_are_fine_for_seconds(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "[coordinator]\nqueue_timeout_s = 30\n"))
    assert config.coordinator.queue_timeout_s == 30.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[coordinator]\nport = 70000", r"port`; value 70000"),
        ("[coordinator]\nprot = 1", "unknown field `prot`"),
        ('[coordinator]\nport = "8000"', r"Expected `int`, got `str` .*value '8000'"),
        ("[coordinator]\nlook_ahead = -1", "`int` >= 0 .*look_ahead`; value -1"),
        ('[coordinator]\ndispatch = "best"', "dispatch policy 'best' is unknown; known: earliest"),
        ('[coordinator]\nordering = "best"', "ordering policy 'best' is unknown"),
        ("[coordinator.dispatch_settings]\nprefix_trust = 2.0", "prefix_trust=2.0: must be"),
        ('[coordinator]\nlink = "tcp://0.0.0.0:5600"', "CURVE keys are required"),
        ('[coordinator]\nlink = "udp://x"', "must be tcp://HOST:PORT"),
        ('[coordinator]\nlog_level = "loud"', "log_level='loud': must be one of debug"),
        ('[[workers]]\nurl = "gpu-1:30000"', "url='gpu-1:30000': must be http"),
        (
            '[[workers]]\nurl = "http://x"\nmax_in_flight = 0',
            r"workers\[0\].max_in_flight`; value 0",
        ),
        (
            '[[workers]]\nurl = "http://x"\n[[workers]]\nurl = "http://x/"',
            "'http://x' is there twice",
        ),
        ("[coordinator", "Expected"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x:1",
        "http://",
        "http://user:secret@x",
        "http://x/path",
        "http://x?q=1",
        "http://a b",
        'http://x"y',
        "http://x#f",
        "http://x:notaport",
        "http://[::1",
        "file:///etc/passwd",
        "",
    ],
)
def test_odd_worker_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="url="):
        check_worker_url(url)


@pytest.mark.parametrize("url", ["http://x:1/", "https://gpu-1", "http://[::1]:30000"])
def test_plain_worker_urls_lose_their_slash(url: str) -> None:
    assert check_worker_url(url) == url.rstrip("/")


def test_hosts_of_configured_workers_are_allowed() -> None:
    rows = (WorkerConfig(url="http://GPU-1:30000"), WorkerConfig(url="http://[fe80::1]:1"))
    assert allowed_hosts(("other",), rows) == {"gpu-1", "fe80::1", "other"}
    with pytest.raises(ConfigError, match="allowed_worker_hosts='http://x'"):
        allowed_hosts(("http://x",), ())
