"""Settings of the coordinator: strict structs, read from TOML, printed back by --print-config.

Runs in whatever process starts a coordinator. Objects are built from these in `service`.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from hexgen_sglang.coordinator.ask_config import AskConfig
from hexgen_sglang.coordinator.limits import TenantLimits
from hexgen_sglang.coordinator.tracing_config import TracingConfig
from hexgen_sglang.coordinator.tuning_config import TuningConfig
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.strict import convert
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.policies.estimators import RemainingWork
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.protocol.tag import BudgetMs, Name
from hexgen_sglang.transport.endpoints import checked_endpoint

__all__ = [
    "CoordinatorConfig",
    "CoordinatorFile",
    "Port",
    "WorkerConfig",
    "as_toml",
    "check_worker_url",
    "convert",
    "coordinator_as_toml",
    "is_loopback_host",
    "load_config",
]

Port = Annotated[int, Meta(ge=0, le=65_535)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]
PolicyOptions = Annotated[dict[str, float], Meta(max_length=64)]

# Host names, addresses, ports: these appear in ids, headers and logs.
_NETLOC = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,255}")
# What `check_worker_url` accepts, but for IPv6 addresses and ports above 65,535.
WORKER_URL_PATTERN = r"^https?://[A-Za-z0-9._-]{1,249}(:[0-9]{1,5})?/?$"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def is_loopback_host(host: str) -> bool:
    """Whether only this machine can reach a server there: localhost, 127.0.0.0/8 or ::1."""
    if host in LOOPBACK_HOSTS:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


class WorkerConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One row of `[[workers]]`: a worker known from the start, by its URL.

    Attributes:
        url: http:// or https:// base address, no path.
        worker_id: name in reports; default `host:port`. A worker that says hello over the
            link with the same URL and no stated name here brings its own.
        hardware: such as "a100"; workers of one name are taken to be alike.
        max_in_flight: requests sent there at once; default: the engine's own limit.
        kv_events, kv_replay: ZMQ endpoints of SGLang's --kv-events-config on that worker
            ("endpoint" and "replay_endpoint"), by which the coordinator knows what its prefix cache
            holds; "": it goes by what it sent there. Only for prompts of token ids.
        prefill_tokens_per_s, decode_tokens_per_s: starting values until rates are learned;
            decode is the rate of one request in a batch of the usual size.
    """

    url: Annotated[str, Meta(max_length=512)]
    worker_id: Name | None = None
    hardware: Annotated[str, Meta(max_length=64)] = ""
    max_in_flight: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    prefill_tokens_per_s: Rate | None = None
    decode_tokens_per_s: Rate | None = None
    kv_events: Annotated[str, Meta(max_length=255)] = ""
    kv_replay: Annotated[str, Meta(max_length=255)] = ""

    def __post_init__(self) -> None:
        check_worker_url(self.url)
        for endpoint in filter(None, (self.kv_events, self.kv_replay)):
            checked_endpoint(endpoint, has_keys=True, bind=False)
        if self.kv_replay and not self.kv_events:
            raise ConfigError("kv_replay: needs kv_events")


class PeerConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One `[[peers]]` row: another coordinator before the same workers.

    Attributes:
        coordinator_id: as that coordinator's own configuration says.
        url: its base address over HTTP.
    """

    coordinator_id: Name
    url: Annotated[str, Meta(max_length=512)]

    def __post_init__(self) -> None:
        check_worker_url(self.url)


class CoordinatorConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The table `[coordinator]`.

    Attributes:
        host, port: where HTTP listens; port 0 takes a free one. Off loopback it needs
            `api_keys` or `allow_anonymous`.
        api_keys: file of hashed API keys made by `hexgen-sglang keys api`; None: no caller
            needs a key. Read again when it changes, and on SIGHUP.
        allow_anonymous: whoever reaches this address may do everything, without a key.
        open_metrics: GET /metrics needs no key.
        isolate_tenant_caches: engines share no prefix between tenants, so that nobody can
            tell from timings or counts what another tenant asks; needs `api_keys`.
        tls_cert, tls_key: files of a PEM certificate chain and its private key, for HTTPS.
            Read again on SIGHUP.
        direct: callers may ask for placements and talk to the workers themselves: whoever has a
            key then learns the workers' addresses.
        link: ZMQ endpoint for the workers' plugins, "tcp://127.0.0.1:5600" or "ipc://PATH"; ""
            for none. Off loopback it needs `keys`.
        keys: folder of CURVE keys made by `hexgen-sglang keys`.
        coordinator_id: name told to workers and peers and shown in logs.
        peer_key: file with an API key of the role operator, shown to `[[peers]]`.
        peer_interval_ms: peers tell each other what they have at least this often.
        dispatch, dispatch_settings: which policy picks the worker, and its settings.
        binding: "late": a request waits in the central queue until a worker can soon start
            it; "early": it goes to the worker that the policy picks at once, and waits there.
        ordering, ordering_settings: which policy orders the central queue, and its settings.
        demotion_ageing: a workflow that cannot meet its deadline any more stands back behind
            work that can, for this many of its budgets; after that it goes before all that comes
            later. 0: it never stands back.
        demotion_caution: what such a workflow is taken to need: 0: what it would alone on the
            fastest worker; 1: what workflows of its type took lately, beside others.
        admission_attainment: a new workflow that would not meet its deadline with this
            probability, or that would bring the share of admitted workflows that meet theirs below
            it, gets 429 with the earliest deadline that could be kept. None: none is refused for
            its deadline.
        tenant_shares: "keys": while several tenants wait, the one goes first that attained less
            of the workers, for its `weight`; tenants are those of `api_keys`, and without these
            all callers are one. "stated": tenants are believed to be who they say they are.
            "off": all callers are one.
        tenant_half_life_s: what a tenant attained counts half after so long.
        trust_output_limits: a request is expected to produce no more than its own limit.
            False where limits are the true lengths, as in benchmarks, so that no policy
            learns a length from them.
        remaining_work: how much a workflow still needs is estimated as the mean of those of its
            type after the same stage ("means"), by their stages as a Markov chain that counts how
            often a stage was entered ("chain"), or as what nine of ten of its type did not exceed
            ("p90"), so that slack is judged with caution.
        accelerators: folder of accelerator profiles. Until a worker's own step times, or the
            rates of its ended requests, are known, its steps are taken to cost what the profile
            with the name of its hardware states. None: nothing is assumed of it.
        accelerators_time_scale: the profiles' seconds in one of ours, for emulated workers.
        max_queued, max_queued_bytes: requests waiting here at most, and their bodies'
            bytes; beyond either the answer is 429.
        queue_timeout_s: a request that waited this long without a worker gets 503.
        look_ahead: requests a worker may hold beyond its batch limit, so that it never idles
            for the time a dispatch takes.
        look_ahead_tokens: prompt tokens that may wait for prefill at a worker that reports
            its load; about one prefill chunk.
        working_set: share of the workers' KV memory that the contexts of workflows in progress
            may take (1.5: half as much again, for what they share) before another may begin; 0: no
            limit. With `binding = "early"` there is none.
        default_max_in_flight: batch limit assumed for a worker that tells none.
        max_attempts: workers tried for one request before it fails.
        retry_share, retry_reserve: a try that a living worker refused or let time out is repeated
            at most so many times for each accepted request, and `retry_reserve` times at once;
            beyond that the client is told. What a dead worker had is always sent elsewhere.
        max_body_bytes: larger request bodies get 413.
        body_timeout_s: a request body that is not complete by then gets 408.
        max_header_bytes, header_timeout_s: of request line and headers together; longer ones
            get 431, slower ones 408.
        max_connections: HTTP connections at once; further ones get 503.
        connect_timeout_s: to open a connection to a worker.
        warm: folder of texts (*.txt) that prompts begin with; each worker that becomes ready
            computes them, so that no request has to. None: nothing is computed ahead.
        move_overdue: a request that has waited at a worker for this many times as long as was
            predicted, and not begun, is sent elsewhere; 0: never. From a worker that drains, what
            has not begun is always sent elsewhere.
        first_byte_timeout_s: dispatch to first byte of a streamed answer; then retried.
        stream_gap_timeout_s: longest silence inside a streamed answer.
        request_timeout_s: from acceptance to the end, all attempts; then 504.
        health_interval_s, health_timeout_s, health_failures: `GET /health` of each worker;
            this many failures in a row make it unreachable.
        heartbeat_ms: workers with a link report load at least this often; a report older
            than three heartbeats counts as unknown.
        drain_timeout_s: after SIGTERM, in-flight requests get this long to end.
        max_workers: registered workers at most.
        max_workflows: workflows remembered at most; ended ones are forgotten first.
        workflow_idle_s: a workflow without an open request for this long counts as ended.
        default_budget_ms: budget by workflow type for workflows that state none.
        allowed_worker_hosts: hosts that workers may register with, beside loopback and the
            hosts of `[[workers]]`. While it is empty, a worker that proved a CURVE key over
            the link may name any host but link-local, multicast and unspecified addresses.
        log_level: of the coordinator's own log lines.
        tuning: search of better settings on recent traffic.
        ask: the page `/ask`, for questions over databases.
        dashboard: there is a page `/dashboard`.
        tracing: OpenTelemetry traces.
    """

    host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    port: Port = 8000
    api_keys: Annotated[str, Meta(min_length=1, max_length=4_096)] | None = None
    allow_anonymous: bool = False
    open_metrics: bool = False
    isolate_tenant_caches: bool = False
    tls_cert: Annotated[str, Meta(min_length=1, max_length=4_096)] | None = None
    tls_key: Annotated[str, Meta(min_length=1, max_length=4_096)] | None = None
    direct: bool = False
    link: Annotated[str, Meta(max_length=255)] = ""
    keys: str | None = None
    coordinator_id: Name = "coordinator"
    peer_key: Annotated[str, Meta(min_length=1, max_length=4_096)] | None = None
    peer_interval_ms: Annotated[int, Meta(ge=20, le=10_000)] = 250
    dispatch: Name = "marginal_cost"
    dispatch_settings: PolicyOptions = {}
    binding: Literal["late", "early"] = "late"
    ordering: Name = "least_slack"
    ordering_settings: PolicyOptions = {}
    demotion_ageing: Annotated[float, Meta(ge=0, le=1_000)] = 0.0
    demotion_caution: Annotated[float, Meta(ge=0, le=10)] = 1.0
    admission_attainment: Annotated[float, Meta(gt=0, lt=1)] | None = None
    tenant_shares: Literal["keys", "stated", "off"] = "keys"
    tenant_half_life_s: Seconds = 60.0
    trust_output_limits: bool = True
    remaining_work: RemainingWork = "means"
    accelerators: Annotated[str, Meta(min_length=1, max_length=4_096)] | None = None
    accelerators_time_scale: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    max_queued: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    max_queued_bytes: Annotated[int, Meta(ge=1_024, le=2**40)] = 268_435_456
    queue_timeout_s: Seconds = 300.0
    look_ahead: Annotated[int, Meta(ge=0, le=1_024)] = 2
    look_ahead_tokens: Annotated[int, Meta(ge=1, le=16_777_216)] = 8_192
    working_set: Annotated[float, Meta(ge=0, le=1_000)] = 1.5
    default_max_in_flight: Annotated[int, Meta(ge=1, le=65_536)] = 32
    max_attempts: Annotated[int, Meta(ge=1, le=32)] = 4
    retry_share: Annotated[float, Meta(ge=0, le=10)] = 0.2
    retry_reserve: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    warm: Annotated[str, Meta(min_length=1, max_length=4_096)] | None = None
    move_overdue: Annotated[float, Meta(ge=0, le=1_000)] = 0.0
    max_body_bytes: Annotated[int, Meta(ge=1_024, le=1_073_741_824)] = 16_777_216
    body_timeout_s: Seconds = 60.0
    max_header_bytes: Annotated[int, Meta(ge=1_024, le=1_048_576)] = 32_768
    header_timeout_s: Seconds = 20.0
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 20_000
    connect_timeout_s: Seconds = 5.0
    first_byte_timeout_s: Seconds = 600.0
    stream_gap_timeout_s: Seconds = 120.0
    request_timeout_s: Seconds = 1_800.0
    health_interval_s: Seconds = 5.0
    health_timeout_s: Seconds = 25.0
    health_failures: Annotated[int, Meta(ge=1, le=100)] = 2
    heartbeat_ms: Annotated[int, Meta(ge=50, le=60_000)] = 1_000
    drain_timeout_s: Seconds = 60.0
    max_workers: Annotated[int, Meta(ge=1, le=4_096)] = 256
    max_workflows: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    workflow_idle_s: Seconds = 600.0
    default_budget_ms: Annotated[dict[Name, BudgetMs], Meta(max_length=256)] = {}
    allowed_worker_hosts: Annotated[tuple[str, ...], Meta(max_length=1_024)] = ()
    log_level: str = "info"
    tuning: TuningConfig = TuningConfig()
    ask: AskConfig = AskConfig()
    dashboard: bool = True
    tracing: TracingConfig = TracingConfig()

    def __post_init__(self) -> None:
        levels = ("debug", "info", "warning", "error")
        if self.log_level not in levels:
            raise ConfigError(f"log_level={self.log_level!r}: must be one of {', '.join(levels)}")
        if self.link:
            try:
                checked_endpoint(self.link, has_keys=self.keys is not None, bind=True)
            except ConfigError as error:
                raise ConfigError(f"link: {error}") from error
        self._check_access()
        DISPATCH.create(self.dispatch, **self.dispatch_settings)
        ORDERING.create(self.ordering, **self.ordering_settings)

    def _check_access(self) -> None:
        """Who can reach it must be known, or anybody be stated to be welcome."""
        if self.api_keys is not None and self.allow_anonymous:
            raise ConfigError("allow_anonymous=true: must be false where api_keys are given")
        if not (is_loopback_host(self.host) or self.api_keys or self.allow_anonymous):
            raise ConfigError(
                f"host={self.host!r} can be reached from other machines: state api_keys (make "
                "one with `hexgen-sglang keys api --tenant NAME`), or allow_anonymous = true, "
                "or use host 127.0.0.1"
            )
        if self.isolate_tenant_caches and self.api_keys is None:
            raise ConfigError("isolate_tenant_caches=true: needs api_keys")
        if self.isolate_tenant_caches and self.warm is not None:
            raise ConfigError("warm: must not be given with isolate_tenant_caches")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key: both must be given, or neither")


class CoordinatorFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole configuration file: `[coordinator]`, `[[workers]]`, `[[peers]]` and limits.

    Attributes:
        peers: the other coordinators before the same workers.
        limits: table `[limits]`: what each tenant may use.
        tenants: tables `[tenants.NAME]`: instead of `limits`, for this tenant.
    """

    coordinator: CoordinatorConfig = CoordinatorConfig()
    workers: Annotated[tuple[WorkerConfig, ...], Meta(max_length=4_096)] = ()
    peers: Annotated[tuple[PeerConfig, ...], Meta(max_length=16)] = ()
    limits: TenantLimits = TenantLimits()
    tenants: Annotated[dict[Name, TenantLimits], Meta(max_length=65_536)] = {}

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for row in self.workers:
            for name in (row.url.rstrip("/"), row.worker_id):
                if name is not None and name in seen:
                    raise ConfigError(f"workers: {name!r} is there twice; must be unique")
                seen.add(name or "")
        if self.coordinator.isolate_tenant_caches and any(row.kv_events for row in self.workers):
            raise ConfigError(
                'kv_events: must be "" with isolate_tenant_caches; the events do not tell whose '
                "prefix it is"
            )
        if self.tenants and self.coordinator.api_keys is None:
            raise ConfigError("tenants: needs api_keys; without keys nobody proves its tenant")
        self._check_peers()

    def _check_peers(self) -> None:
        """Every coordinator has a name of its own, and can prove who it is."""
        config = self.coordinator
        ids = [config.coordinator_id, *(row.coordinator_id for row in self.peers)]
        for name in ids:
            if ids.count(name) > 1:
                raise ConfigError(f"peers: coordinator_id={name!r} is there twice; must be unique")
        if self.peers and config.direct:
            raise ConfigError("direct=true: must be false with peers; placements are not shared")
        if self.peers and (config.api_keys is None) != (config.peer_key is None):
            raise ConfigError("peer_key: must be given where api_keys are, and only there")


def check_worker_url(url: str) -> str:
    """The URL without a trailing slash.

    Raises:
        ConfigError: not http or https, no host, or with user, path, query or fragment.
    """
    allowed = "must be http://host:port or https://host:port without path, query or user"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"url={url!r}: {error}; {allowed}") from error
    extras = parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in {"http", "https"} or not parts.hostname or extras:
        raise ConfigError(f"url={url!r}: {allowed}")
    # urlsplit drops tabs, newlines and leading spaces, which other parsers do not.
    if (
        any(char <= " " for char in url)
        or parts.path not in {"", "/"}
        or not _NETLOC.fullmatch(parts.netloc)
    ):
        raise ConfigError(f"url={url!r}: {allowed}")
    return url.rstrip("/")


def load_config(path: Path) -> CoordinatorFile:
    """Read a TOML file.

    Raises:
        ConfigError: not readable, not TOML, an unknown field, or a value out of range; the
            message names file, field, value and allowed range.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return convert(raw, CoordinatorFile, str(path))


def as_toml(config: CoordinatorFile) -> str:
    """The configuration with every default filled in, as TOML that `load_config` reads back."""
    tables: list[str] = []
    for row in config.workers:
        tables += ["\n[[workers]]", *_rows(msgspec.structs.asdict(row))]
    for peer in config.peers:
        tables += ["\n[[peers]]", *_rows(msgspec.structs.asdict(peer))]
    named = {f'tenants."{name}"': limits for name, limits in config.tenants.items()}
    for title, limits in {"limits": config.limits, **named}.items():
        rows = _rows(msgspec.structs.asdict(limits))
        tables += [f"\n[{title}]", *rows] if rows or title != "limits" else []
    return coordinator_as_toml(config.coordinator) + "".join(f"{line}\n" for line in tables)


def coordinator_as_toml(config: CoordinatorConfig) -> str:
    """The table `[coordinator]` and those within it, with every default filled in."""
    lines = ["[coordinator]"]
    tables: list[str] = []
    for field in msgspec.structs.fields(CoordinatorConfig):
        value = getattr(config, field.name)
        if isinstance(value, Struct):
            tables += _table(f"coordinator.{field.name}", msgspec.structs.asdict(value))
        elif isinstance(value, dict):
            tables += _table(f"coordinator.{field.name}", value) if value else []
        elif value is not None:
            lines.append(f"{field.name} = {_literal(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _table(name: str, values: dict[str, Any]) -> list[str]:
    """A table; tables within it come behind its own rows."""
    values = {
        key: msgspec.structs.asdict(value) if isinstance(value, Struct) else value
        for key, value in values.items()
    }
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines = [f"\n[{name}]", *_rows(plain)]
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += _table(f"{name}.{key}", value)
    return lines


def _rows(table: dict[str, Any]) -> list[str]:
    """`"key" = value` lines; None has no TOML form and is left out."""
    return [
        f"{_literal(name)} = {_literal(value)}"
        for name, value in table.items()
        if value is not None
    ]


def _literal(value: object) -> str:
    """A TOML literal; JSON's strings, numbers and arrays are TOML's too, but for a bare DEL."""
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
