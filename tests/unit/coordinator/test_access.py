"""Who may start without keys, whose workflow is whose, which hosts workers may name."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.coordinator.access import ANYBODY, Caller
from hexgen_sglang.coordinator.api_keys import Role
from hexgen_sglang.coordinator.attempt_io import body_for
from hexgen_sglang.coordinator.config import (
    CoordinatorConfig,
    CoordinatorFile,
    as_toml,
    check_worker_url,
    convert,
    load_config,
)
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.incoming import read_request
from hexgen_sglang.coordinator.limits import TenantLimits
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.workers import WorkerDirectory
from hexgen_sglang.core.errors import ConfigError, ProtocolError
from hexgen_sglang.protocol.tag import WorkflowTag

ACME = Caller("acme", frozenset({Role.CLIENT}), "1")
OPERATOR = Caller("ops", frozenset({Role.OPERATOR}), "2")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "gpu-1.internal", "127.evil.example"]
)
def test_off_loopback_somebody_must_be_named(host: str) -> None:
    with pytest.raises(ConfigError, match=r"state api_keys .* or allow_anonymous = true"):
        CoordinatorConfig(host=host)
    CoordinatorConfig(host=host, api_keys="keys.toml")
    CoordinatorConfig(host=host, allow_anonymous=True)
    with pytest.raises(ConfigError, match="must be false where api_keys are given"):
        CoordinatorConfig(host=host, api_keys="keys.toml", allow_anonymous=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_on_loopback_nothing_is_needed(host: str) -> None:
    CoordinatorConfig(host=host)


def test_limits_and_keys_are_printed_so_that_they_read_back(tmp_path) -> None:
    config = CoordinatorFile(
        CoordinatorConfig(api_keys="keys.toml", tls_cert="c.pem", tls_key="k.pem"),
        limits=TenantLimits(max_concurrent=8),
        tenants={"team.a": TenantLimits(tokens_per_min=1_000, requests_per_s=0.5)},
    )
    path = tmp_path / "c.toml"
    path.write_text(as_toml(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"coordinator": {"tls_cert": "c.pem"}}, "both must be given"),
        ({"coordinator": {"isolate_tenant_caches": True}}, "needs api_keys"),
        ({"tenants": {"acme": {}}}, "tenants: needs api_keys"),
        ({"limits": {"requests_per_s": 0}}, "requests_per_s"),
        ({"limits": {"request_per_s": 1}}, "unknown field `request_per_s`"),
    ],
)
def test_settings_that_would_protect_nothing_are_refused(plain, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        convert(plain, CoordinatorFile, "test")


NAMES = st.text("ab/:.@", min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(one=NAMES, other=NAMES, ids=st.tuples(NAMES, NAMES))
def test_no_two_tenants_ever_enter_the_same_workflow(one, other, ids) -> None:
    tenants = [name.replace("/", "-") for name in (one, other)]  # key files hold no "/"
    tags = [
        Caller(tenant).own(WorkflowTag(workflow_id=workflow_id))
        for tenant, workflow_id in zip(tenants, ids, strict=True)
    ]
    same = tags[0].workflow_id == tags[1].workflow_id
    assert same == ((tenants[0], ids[0]) == (tenants[1], ids[1]))
    assert Caller(tenants[0]).shown_id(tags[0].workflow_id) == ids[0]


def test_the_keys_tenant_counts_and_not_the_tags() -> None:
    tag = ACME.own(WorkflowTag(workflow_id="w", tenant="rich"))
    assert (tag.tenant, tag.workflow_id) == ("acme", "acme/w")
    assert ANYBODY.own(WorkflowTag(workflow_id="w", tenant="rich")).tenant == "rich"
    with pytest.raises(ProtocolError, match="must be 1 to 123 characters for tenant 'acme'"):
        ACME.own(WorkflowTag(workflow_id="w" * 124))


def test_who_sees_what() -> None:
    assert [caller.sees("acme") for caller in (ACME, OPERATOR, ANYBODY)] == [True] * 3
    assert not Caller("rival", frozenset({Role.CLIENT})).sees("acme")
    assert not ACME.sees("")


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        (
            "/generate",
            {"sampling_params": {"custom_params": {"hexgen": {}}}},
            "custom_params.hexgen",
        ),
        ("/generate", {"sampling_params": [{"custom_params": {"hexgen": 1}}]}, "custom_params"),
        ("/v1/completions", {"prompt": "x", "custom_params": {"hexgen": {}}}, "custom_params"),
        ("/generate", {"bootstrap_host": "10.0.0.1"}, "bootstrap_host"),
        ("/generate", {"custom_logit_processor": "gASV"}, "custom_logit_processor"),
    ],
)
def test_a_tenant_cannot_speak_to_the_engine_past_its_tag(route, body, field) -> None:
    raw = msgspec.json.encode({"text": "x", **body})
    with pytest.raises(ProtocolError, match=field):
        read_request(route, raw, {}, ACME)
    read_request(route, raw, {})


def test_isolated_tenants_share_no_prefix(make_request) -> None:
    def key(caller: Caller, **body: object) -> object:
        request = make_request("r")
        raw = msgspec.json.encode({"text": "x", **body})
        request.incoming = read_request("/generate", raw, {}, caller)
        sent = msgspec.json.decode(body_for(request, "r", 0.0, isolate_caches=True))
        return sent["extra_key"]

    rival = Caller("acme2", frozenset({Role.CLIENT}))
    assert key(ACME) == "acme/"
    assert len({key(ACME), key(rival), key(ACME, extra_key="s"), key(rival, extra_key="s")}) == 4
    assert key(rival, extra_key=["acme/", "b"]) == ["acme2/acme/", "acme2/b"]


# The same address in other spellings, which resolvers and HTTP clients take for one.
METADATA = [
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.254.169.254.",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[fe80::1]",
]
ODD_LOOPBACK = ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::ffff:127.0.0.1]", "localhost."]
ELSEWHERE = ["0.0.0.0", "[::]", "224.0.0.1", "[ff02::1]"]


def directory(*allowed: str) -> WorkerDirectory:
    return WorkerDirectory(
        Estimates(), Metrics(), set(allowed), 10, lambda: None, has_stated_hosts=bool(allowed)
    )


@pytest.mark.parametrize("host", METADATA + ODD_LOOPBACK + ELSEWHERE)
def test_odd_spellings_are_not_on_the_list_and_no_worker_may_link_from_there(host: str) -> None:
    url = check_worker_url(f"http://{host}:80")
    assert not directory().may_register(url)
    assert not directory("gpu-1").may_link(url)
    if host != "localhost.":  # a name; whom it means is for the operator's resolver
        assert not directory().may_link(url)


def test_a_stated_list_binds_workers_with_keys_too() -> None:
    assert directory().may_link("http://gpu-9.internal:30000")
    assert directory().may_link("http://10.0.0.9:30000")
    assert not directory("gpu-1").may_link("http://gpu-9.internal:30000")
    assert directory("gpu-1").may_link("http://GPU-1:30000")
    assert directory("169.254.7.7").may_link("http://169.254.7.7:30000")


@pytest.mark.parametrize(
    "url",
    [
        "http://gpu-1@169.254.169.254",
        "http://gpu-1:80@169.254.169.254",
        "http://169.254.169.254#@gpu-1",
        "http://169.254.169.254?@gpu-1",
        "http://gpu-1\\@169.254.169.254",
        "http://gpu-1%2f@169.254.169.254",
        "http://gpu-1 169.254.169.254",
        "http://gpu-1\t169.254.169.254",
        "http://gpu-1\r\nHost: x",
        "http://127.0.0.1\u3002evil.example",
        "http://\u2460\u2461\u2466.0.0.1",
        "http:gpu-1",
        "gopher://gpu-1",
    ],
)
def test_urls_that_parsers_read_differently_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="url="):
        check_worker_url(url)


def test_nobody_can_grow_the_labels_of_metrics() -> None:
    metrics = Metrics()
    for number in range(4_200):
        metrics.workflows.labels(metrics.type_label(f"type-{number}"), "met").inc()
        metrics.limited(f"tenant-{number}", "max_concurrent")
        metrics.retries.labels(metrics.worker_label(f"worker-{number}"), "connect").inc()
    lines = metrics.exposition().decode().splitlines()
    assert sum(line.startswith("hexgen_workflows_total") for line in lines) == 65
    assert sum(line.startswith("hexgen_tenant_limited_total") for line in lines) == 257
    assert sum(line.startswith("hexgen_retries_total") for line in lines) == 4_097
