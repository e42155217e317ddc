"""From `make-secrets` to a coordinator that serves: as its pod would start, in a folder."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.cluster.process import ChildProcess
from hexgen_sglang.coordinator.api_keys import KeyRing, Role
from hexgen_sglang.transport.keys import load_coordinator_keys, load_worker_keys

KUBERNETES = Path(__file__).resolve().parents[3] / "launch" / "kubernetes"

Manifest = dict[str, Any]
Cluster = Callable[[str, str], Manifest]


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, Manifest], str]:
    """The Secrets by name, and what was said on stderr."""
    done = subprocess.run(
        [KUBERNETES / "make-secrets", "acme"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return {m["metadata"]["name"]: m for m in yaml.safe_load_all(done.stdout)}, done.stderr


def mount(secret: Manifest, folder: Path) -> Path:
    """The files of a Secret as a volume with an fsGroup shows them."""
    folder.mkdir(parents=True)
    for name, text in secret["data"].items():
        (folder / name).write_bytes(base64.b64decode(text))
        (folder / name).chmod(0o440)
    return folder


def run_init_container(deployment: Manifest, secrets: Path, run: Path) -> Path:
    """What the pod does before its container starts; the folder of keys."""
    run.mkdir()
    [container] = deployment["spec"]["template"]["spec"]["initContainers"]
    script = container["args"][0].replace("/secrets/", f"{secrets}/")
    script = script.replace("/run/hexgen", str(run))
    subprocess.run([*container["command"], script], check=True, timeout=20)
    return run / "keys"


def volume(deployment: Manifest, name: str) -> str:
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    [row] = [row for row in volumes if row["name"] == name]
    return str(row["secret"]["secretName"])


def test_secrets_are_valid_and_everyone_that_pods_need(
    made: tuple[dict[str, Manifest], str], cluster: Cluster
) -> None:
    secrets, _ = made
    for secret in secrets.values():
        kubernetes_validate.validate(secret, "1.37", strict=True)
    needed = set()
    for name in ("hexgen-coordinator", "hexgen-worker-a100"):
        spec = cluster("Deployment", name)["spec"]["template"]["spec"]
        needed |= {row["secret"]["secretName"] for row in spec["volumes"] if "secret" in row}
        for row in spec["containers"][0].get("env", []):
            reference = row.get("valueFrom", {}).get("secretKeyRef")
            if reference is not None and not reference.get("optional"):
                needed.add(reference["name"])
                assert reference["key"] in secrets[reference["name"]]["data"]
    assert needed == set(secrets)


def test_each_end_gets_its_half_of_the_keys(
    made: tuple[dict[str, Manifest], str], cluster: Cluster, tmp_path: Path
) -> None:
    secrets, _ = made
    loaded = {}
    for name, load in (
        ("hexgen-coordinator", load_coordinator_keys),
        ("hexgen-worker-a100", load_worker_keys),
    ):
        deployment = cluster("Deployment", name)
        mounted = mount(secrets[volume(deployment, "link-keys")], tmp_path / name / "secrets")
        loaded[name] = load(run_init_container(deployment, mounted, tmp_path / name / "run"))
    coordinator, worker = loaded["hexgen-coordinator"], loaded["hexgen-worker-a100"]
    assert worker.own.public in coordinator.allowed
    assert worker.coordinator_public == coordinator.own.public
    assert "coordinator.secret" not in secrets["hexgen-worker-link-keys"]["data"]
    assert "worker.secret" not in secrets["hexgen-coordinator-link-keys"]["data"]


def test_the_coordinator_starts_from_them_and_its_probes_answer(
    made: tuple[dict[str, Manifest], str], cluster: Cluster, tmp_path: Path
) -> None:
    secrets, told = made
    deployment = cluster("Deployment", "hexgen-coordinator")
    keys = run_init_container(
        deployment,
        mount(secrets[volume(deployment, "link-keys")], tmp_path / "secrets"),
        tmp_path / "run",
    )
    api = mount(secrets[volume(deployment, "api-keys")], tmp_path / "api")
    ring = KeyRing(api / "api-keys.toml")
    tenant_key = told.split()[-1]
    operator_key = base64.b64decode(secrets["hexgen-operator"]["data"]["api-key"]).decode()
    assert (ring.find(tenant_key).tenant, ring.find(operator_key).roles) == (  # type: ignore[union-attr]
        "acme",
        (Role.OPERATOR,),
    )
    port, link_port = free_port(), free_port()
    text = cluster("ConfigMap", "hexgen-coordinator")["data"]["coordinator.toml"]
    for old, new in (
        ("port = 8000", f"port = {port}"),
        (":5600", f":{link_port}"),
        ("/etc/hexgen/api", str(api)),
        ("/run/hexgen/keys", str(keys)),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "coordinator.toml").write_text(text)
    command = [sys.executable, "-m", "hexgen_sglang", "coordinator", "--config"]
    command.append(str(tmp_path / "coordinator.toml"))
    process = ChildProcess(
        "coordinator", command, env=os.environ, log_path=tmp_path / "coordinator.log"
    )
    with process:
        probes = deployment["spec"]["template"]["spec"]["containers"][0]
        url = f"http://127.0.0.1:{port}"
        started = probes["startupProbe"]
        most_s = started["periodSeconds"] * started["failureThreshold"]
        assert wait_for(url + started["httpGet"]["path"], most_s, process) == 200
        assert status(url + probes["livenessProbe"]["httpGet"]["path"]) == 200
        # Not ready before the first worker, and alive all the same.
        assert status(url + probes["readinessProbe"]["httpGet"]["path"]) == 503
        assert status(url + "/metrics") == 401
        assert status(url + "/metrics", operator_key) == 200
        assert status(url + "/v1/models", tenant_key) == 200


def status(url: str, key: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def wait_for(url: str, most_s: float, process: ChildProcess) -> int:
    deadline_s = time.monotonic() + most_s
    while True:
        try:
            return status(url)
        except OSError:
            assert process.is_running(), process.log_tail()
            assert time.monotonic() < deadline_s, process.log_tail()
            time.sleep(0.1)
