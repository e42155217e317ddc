"""What the manifests say of our programs is so: ports, routes, flags, keys, metrics, times."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hexgen_sglang.coordinator import openapi
from hexgen_sglang.coordinator.config import load_config
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.protocol.tag import WorkflowTag

KUBERNETES = Path(__file__).resolve().parents[3] / "launch" / "kubernetes"
GPUS = sorted(path.name for path in (KUBERNETES / "gpus").iterdir())
WORKER_PORT = 30010
GOODBYE_S = 5  # coordinator/server.py: for connections to close

Manifest = dict[str, Any]
Cluster = Callable[[str, str], Manifest]
Rendered = Callable[[str], list[Manifest]]
LaunchProblems = Callable[[list[list[str]]], list[str | None]]


@pytest.fixture
def settings() -> Any:
    return load_config(KUBERNETES / "coordinator" / "coordinator.toml").coordinator


def pod(deployment: Manifest) -> dict[str, Any]:
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def container(deployment: Manifest) -> dict[str, Any]:
    [only] = pod(deployment)["containers"]
    return dict(only)


def ports_of(deployment: Manifest) -> dict[str, int]:
    return {row["name"]: row["containerPort"] for row in container(deployment)["ports"]}


def workers(rendered: Rendered) -> list[Manifest]:
    return [
        m
        for m in rendered(".")
        if m["kind"] == "Deployment" and m["metadata"]["name"] != "hexgen-coordinator"
    ]


def substituted(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], text)


def arguments(deployment: Manifest, keys: Path) -> list[str]:
    """The container's arguments as Kubernetes would fill them in."""
    values = {row["name"]: row.get("value", "") for row in container(deployment)["env"]}
    values |= {"POD_NAME": "hexgen-worker-a100-5c6d-x7k2p", "POD_IP": "10.1.2.3"}
    args = [substituted(text, values) for text in container(deployment)["args"]]
    return [text.replace("/run/hexgen/keys", str(keys)) for text in args]


def test_the_coordinator_listens_where_everything_points(cluster: Cluster, settings: Any) -> None:
    deployment = cluster("Deployment", "hexgen-coordinator")
    link_port = int(settings.link.rpartition(":")[2])
    assert ports_of(deployment) == {"http": settings.port, "link": link_port}
    for name in ("hexgen-coordinator", "hexgen-link"):
        spec = cluster("Service", name)["spec"]
        assert spec["selector"] == deployment["spec"]["selector"]["matchLabels"]
        for row in spec["ports"]:
            assert row["port"] == ports_of(deployment)[row["targetPort"]]
    # A worker cannot wait for a coordinator that is not ready before it has a worker.
    assert cluster("Service", "hexgen-link")["spec"]["publishNotReadyAddresses"] is True


def test_configuration_and_keys_are_mounted_where_they_are_looked_for(
    cluster: Cluster, settings: Any
) -> None:
    deployment = cluster("Deployment", "hexgen-coordinator")
    mounts = {row["mountPath"]: row["name"] for row in container(deployment)["volumeMounts"]}
    assert container(deployment)["args"] == ["--config", "/etc/hexgen/config/coordinator.toml"]
    assert mounts["/etc/hexgen/config"] == "config"
    assert Path(settings.api_keys).parent.as_posix() in mounts
    assert Path(settings.keys).parent.as_posix() in mounts
    data = cluster("ConfigMap", "hexgen-coordinator")["data"]["coordinator.toml"]
    assert tomllib.loads(data)["coordinator"]["link"] == settings.link


def test_routes_of_probes_exist_and_liveness_needs_no_worker(cluster: Cluster) -> None:
    bodies = {"POST /workers": WorkflowTag, "PATCH /workflows/{workflow_id}": WorkflowTag}
    paths = openapi.document(bodies, needs_key=True, has_open_metrics=False)["paths"]
    one = container(cluster("Deployment", "hexgen-coordinator"))
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert "get" in paths[one[name]["httpGet"]["path"]]
    assert one["readinessProbe"]["httpGet"]["path"] == "/health"
    assert one["livenessProbe"]["httpGet"]["path"] != "/health"


def test_routes_of_the_workers_probes_are_sglangs(
    rendered: Rendered, sglang_tree: Callable[[str], Any]
) -> None:
    server = sglang_tree("0.5.17").root / "srt" / "entrypoints" / "http_server.py"
    for deployment in workers(rendered):
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container(deployment)[name]
            assert f'@app.get("{probe["httpGet"]["path"]}")' in server.read_text()
            # SGLang itself gives up after HEALTH_CHECK_TIMEOUT seconds.
            assert probe["timeoutSeconds"] > 20


@pytest.mark.timeout(300)  # importing SGLang takes 10 to 60 s on a busy machine
def test_sglang_takes_the_workers_flags(
    rendered: Rendered, launch_problems: LaunchProblems, tmp_path: Path
) -> None:
    from hexgen_sglang.transport.zmq_link import make_keys

    make_keys(tmp_path / "keys")
    lines = [arguments(deployment, tmp_path / "keys") for deployment in workers(rendered)]
    assert len(lines) == len(GPUS)
    *problems, wrong = launch_problems([*lines, [*lines[0], "--hexgen-cordinator=x"]])
    assert problems == [None] * len(GPUS)
    assert wrong is not None
    assert "--hexgen-cordinator" in wrong


@pytest.mark.parametrize("gpu", GPUS)
def test_a_worker_is_on_its_gpus_and_says_which(cluster: Cluster, gpu: str) -> None:
    deployment = cluster("Deployment", f"hexgen-worker-{gpu}")
    env = {row["name"]: row.get("value") for row in container(deployment)["env"]}
    assert env["HEXGEN_HARDWARE"] == gpu
    assert container(deployment)["resources"]["limits"]["nvidia.com/gpu"] == env["HEXGEN_TP"]
    assert gpu.upper() in pod(deployment)["nodeSelector"]["nvidia.com/gpu.product"]
    assert ports_of(deployment) == {"http": WORKER_PORT}
    assert f"--port={WORKER_PORT}" in container(deployment)["args"]
    budget = cluster("PodDisruptionBudget", f"hexgen-worker-{gpu}")["spec"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert labels["hexgen-sglang/gpu"] == gpu


def test_grace_periods_are_longer_than_what_happens_in_them(
    cluster: Cluster, rendered: Rendered, settings: Any
) -> None:
    deployment = cluster("Deployment", "hexgen-coordinator")
    hook = container(deployment)["lifecycle"]["preStop"]["exec"]["command"]
    needed_s = int(hook[1]) + settings.drain_timeout_s + GOODBYE_S
    assert pod(deployment)["terminationGracePeriodSeconds"] > needed_s
    for deployment in workers(rendered):
        hook = container(deployment)["lifecycle"]["preStop"]["exec"]["command"]
        drain_s = float(re.findall(r"--timeout-s (\d+)", hook[-1])[0])
        assert pod(deployment)["terminationGracePeriodSeconds"] >= drain_s + 30


def test_pods_are_restricted(rendered: Rendered) -> None:
    for deployment in [m for m in rendered(".") if m["kind"] == "Deployment"]:
        spec = pod(deployment)
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for row in [*spec["initContainers"], *spec["containers"]]:
            assert row["securityContext"]["allowPrivilegeEscalation"] is False
            assert row["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in row["resources"]["limits"]
    assert container(cluster_deployment(rendered))["securityContext"]["readOnlyRootFilesystem"]


def cluster_deployment(rendered: Rendered) -> Manifest:
    return next(
        m
        for m in rendered(".")
        if m["metadata"]["name"] == "hexgen-coordinator" and m["kind"] == "Deployment"
    )


def allowed(policy: Manifest, direction: str) -> dict[str, set[int]]:
    """Ports by the component at the other end; "" for anything else."""
    ports: dict[str, set[int]] = {}
    side = "from" if direction == "ingress" else "to"
    for rule in policy["spec"][direction]:
        for peer in rule[side]:
            labels = peer.get("podSelector", {}).get("matchLabels", {})
            name = labels.get("app.kubernetes.io/component", "")
            ports.setdefault(name, set()).update(row["port"] for row in rule["ports"])
    return ports


def test_network_policies_let_through_what_is_needed_and_no_more(
    cluster: Cluster, settings: Any
) -> None:
    link_port = int(settings.link.rpartition(":")[2])
    nothing = cluster("NetworkPolicy", "hexgen-deny-by-default")["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    coordinator = cluster("NetworkPolicy", "hexgen-coordinator")
    worker = cluster("NetworkPolicy", "hexgen-worker")
    to_coordinator = {settings.port, link_port}
    assert allowed(worker, "ingress") == {"coordinator": {WORKER_PORT}}
    assert allowed(worker, "egress")["coordinator"] == to_coordinator
    assert allowed(coordinator, "ingress") == {"worker": to_coordinator, "": {settings.port}}
    assert allowed(coordinator, "egress") == {"worker": {WORKER_PORT}, "": {53}}


def test_scaling_and_monitoring_name_what_there_is(rendered: Rendered, cluster: Cluster) -> None:
    [scaled] = rendered("scaling/keda")
    [scaler] = rendered("scaling/hpa")
    rules = yaml.safe_load((KUBERNETES / "scaling" / "hpa" / "adapter-rules.yaml").read_text())
    for spec in (scaled["spec"], scaler["spec"]):
        assert cluster(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
    [trigger] = scaled["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold"}
    [rule] = rules["externalRules"]
    assert rule["name"]["as"] == scaler["spec"]["metrics"][0]["external"]["metric"]["name"]
    exposition = Metrics().exposition().decode()
    for query in (trigger["metadata"]["query"], rule["metricsQuery"], rule["seriesQuery"]):
        for name in re.findall(r"hexgen_\w+", query):
            assert f"# TYPE {name} gauge\n" in exposition
        for prefix in re.findall(r'worker_id=~"([\w-]+)-\.\+"', query):
            assert cluster("Deployment", prefix)
    [monitor] = rendered("monitoring")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["port"] in ports_of(cluster("Deployment", "hexgen-coordinator"))
