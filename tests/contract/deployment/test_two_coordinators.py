"""What the manifests of two coordinators say of our programs is so, and both start from them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.cluster.process import ChildProcess
from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key
from hexgen_sglang.coordinator.config import CoordinatorFile, load_config
from hexgen_sglang.transport.zmq_link import make_keys

KUBERNETES = Path(__file__).resolve().parents[3] / "launch" / "kubernetes"
FOLDER = KUBERNETES / "two-coordinators"
MEETING_S = 30.0

Manifest = dict[str, Any]
Pair = Callable[[str, str], Manifest]


@pytest.fixture
def stateful(pair: Pair) -> Manifest:
    return pair("StatefulSet", "hexgen-coordinator")


@pytest.fixture
def pods(stateful: Manifest) -> list[str]:
    """Names of the pods, as Kubernetes gives them."""
    name = stateful["metadata"]["name"]
    return [f"{name}-{number}" for number in range(stateful["spec"]["replicas"])]


@pytest.fixture
def settings(pods: list[str]) -> dict[str, CoordinatorFile]:
    return {pod: load_config(FOLDER / f"{pod}.toml") for pod in pods}


def container(manifest: Manifest) -> Manifest:
    [only] = manifest["spec"]["template"]["spec"]["containers"]
    return dict(only)


def test_each_pod_has_its_configuration_which_names_the_other(
    pair: Pair, stateful: Manifest, pods: list[str], settings: dict[str, CoordinatorFile]
) -> None:
    service = pair("Service", stateful["spec"]["serviceName"])
    assert service["spec"]["clusterIP"] == "None"  # or pods have no names
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    data = pair("ConfigMap", "hexgen-coordinator")["data"]
    assert data.keys() == {f"{pod}.toml" for pod in pods}
    _, path = container(stateful)["args"]
    assert path == "/etc/hexgen/config/$(POD_NAME).toml"
    [env] = container(stateful)["env"]
    assert (env["name"], env["valueFrom"]["fieldRef"]["fieldPath"]) == ("POD_NAME", "metadata.name")
    for pod, file in settings.items():
        [other] = [name for name in pods if name != pod]
        [peer] = file.peers
        assert (file.coordinator.coordinator_id, peer.coordinator_id) == (pod, other)
        port = settings[other].coordinator.port
        assert peer.url == f"http://{other}.{service['metadata']['name']}:{port}"


def test_both_say_the_same_and_what_one_coordinator_says(
    pods: list[str], settings: dict[str, CoordinatorFile]
) -> None:
    first, second = ((FOLDER / f"{pod}.toml").read_text() for pod in pods)
    swapped = {pods[0]: pods[1], pods[1]: pods[0]}
    assert re.sub("|".join(pods), lambda match: swapped[match[0]], first) == second
    alone = (KUBERNETES / "coordinator" / "coordinator.toml").read_text().splitlines()
    said = first.splitlines()
    assert [line for line in alone if line not in said and not line.startswith("#")] == []
    for file in settings.values():
        assert file.coordinator.peer_key is not None


def test_peer_keys_and_budget_are_where_they_are_looked_for(
    pair: Pair, stateful: Manifest, settings: dict[str, CoordinatorFile]
) -> None:
    mounts = {row["mountPath"]: row["name"] for row in container(stateful)["volumeMounts"]}
    volumes = {row["name"]: row for row in stateful["spec"]["template"]["spec"]["volumes"]}
    assert mounts.keys() >= {"/etc/hexgen/config", "/etc/hexgen/api", "/run/hexgen"}
    for file in settings.values():
        key = Path(file.coordinator.peer_key or "")
        secret = volumes[mounts[key.parent.as_posix()]]["secret"]
        assert (secret["secretName"], key.name) == ("hexgen-operator", "api-key")
    budget = pair("PodDisruptionBudget", "hexgen-coordinator")["spec"]
    assert budget["maxUnavailable"] < stateful["spec"]["replicas"]
    assert budget["selector"] == stateful["spec"]["selector"]
    [rule] = [
        rule
        for rule in pair("NetworkPolicy", "hexgen-coordinator")["spec"]["ingress"]
        if rule["from"][0].get("podSelector") == stateful["spec"]["selector"]
    ]
    [ports] = {file.coordinator.port for file in settings.values()}
    assert [row["port"] for row in rule["ports"]] == [ports]
    egress = pair("NetworkPolicy", "hexgen-coordinator")["spec"]["egress"]
    assert {"to": rule["from"], "ports": rule["ports"]} in egress


@pytest.mark.parametrize("gpu", ["a100", "l40s"])
def test_workers_link_to_both_and_leave_both(
    gpu: str, pair: Pair, cluster: Pair, pods: list[str], settings: dict[str, CoordinatorFile]
) -> None:
    one, both = (
        container(source("Deployment", f"hexgen-worker-{gpu}")) for source in (cluster, pair)
    )
    changed = [(old, new) for old, new in zip(one["args"], both["args"], strict=True) if old != new]
    [(_, flag)] = changed
    name, _, value = flag.partition("=")
    assert name == "--hexgen-coordinator"
    hosts = [f"{pod}.hexgen-link" for pod in pods]
    links = [settings[pod].coordinator.link.rpartition(":")[2] for pod in pods]
    assert value.split(",") == [
        f"tcp://{host}:{port}" for host, port in zip(hosts, links, strict=True)
    ]
    script = both["lifecycle"]["preStop"]["exec"]["command"][-1]
    [names] = re.findall(r"for coordinator in (.+?);", script)
    assert names.split() == pods
    for part in ("http://$coordinator.hexgen-link:8000", "--remove & done; wait"):
        assert part in script


def test_both_start_from_their_files_and_meet(pair: Pair, pods: list[str], tmp_path: Path) -> None:
    data = pair("ConfigMap", "hexgen-coordinator")["data"]
    make_keys(tmp_path / "keys")
    operator, row = make_key("operations", (Role.OPERATOR,))
    append_key(tmp_path / "api-keys.toml", row)
    (tmp_path / "api-key").write_text(operator)
    ports = {pod: free_port() for pod in pods}
    with contextlib.ExitStack() as stack:
        processes = {}
        for pod in pods:
            path = tmp_path / f"{pod}.toml"
            path.write_text(as_on_this_machine(data[path.name], pod, ports, tmp_path))
            command = [sys.executable, "-m", "hexgen_sglang", "coordinator", "--config", str(path)]
            log_path = tmp_path / f"{pod}.log"
            process = ChildProcess(pod, command, env=os.environ, log_path=log_path)
            processes[pod] = stack.enter_context(process)
        for pod, process in processes.items():
            url = f"http://127.0.0.1:{ports[pod]}/health"
            deadline_s = time.monotonic() + MEETING_S
            # No worker is ready, but the other coordinator is there.
            while (told := health(url)) is None or "peers_lost" in told["degraded"]:
                assert process.is_running(), process.log_tail()
                assert time.monotonic() < deadline_s, process.log_tail()
                time.sleep(0.1)
            assert told["status"] == "no_worker"


def as_on_this_machine(text: str, pod: str, ports: dict[str, int], folder: Path) -> str:
    """The configuration with addresses and folders of this test instead of a pod's."""
    for name, port in ports.items():
        text = text.replace(f"http://{name}.hexgen-link:8000", f"http://127.0.0.1:{port}")
    for old, new in (
        ("port = 8000", f"port = {ports[pod]}"),
        (":5600", f":{free_port()}"),
        ("/etc/hexgen/api/", f"{folder}/"),
        ("/etc/hexgen/peer/", f"{folder}/"),
        ("/run/hexgen/keys", f"{folder}/keys"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


def health(url: str) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(url) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        with error:
            return dict(json.load(error))
    except OSError:
        return None
