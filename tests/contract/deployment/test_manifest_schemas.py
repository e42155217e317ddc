"""Every manifest is what the schemas of several Kubernetes versions allow, no field too many."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

KUBERNETES = Path(__file__).resolve().parents[3] / "launch" / "kubernetes"
TARGETS = [".", "two-coordinators", "monitoring", "scaling/keda", "scaling/hpa"]
VERSIONS = ["1.30", "1.34", "1.37"]
# Kinds of operators that a cluster may have; their fields are checked in test_manifest_facts.
CUSTOM = {"PodMonitor", "ScaledObject"}

Rendered = Callable[[str], list[dict[str, Any]]]


def validate(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_applied_fits_the_schemas(target: str, version: str, rendered: Rendered) -> None:
    manifests = rendered(target)
    assert manifests
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            validate(manifest, version)


def test_a_field_that_does_not_exist_is_found(rendered: Rendered) -> None:
    deployment = next(m for m in rendered(".") if m["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        validate(deployment, VERSIONS[-1])


def test_every_file_is_part_of_a_kustomization() -> None:
    used = set()
    for path in KUBERNETES.rglob("kustomization.yaml"):
        kustomization = yaml.safe_load(path.read_text())
        used |= {(path.parent / name).resolve() for name in kustomization["resources"]}
        for generator in kustomization.get("configMapGenerator", []):
            used |= {path.parent / name for name in generator["files"]}
    files = {p for p in KUBERNETES.rglob("*") if p.suffix in {".yaml", ".toml"}}
    others = {p.relative_to(KUBERNETES).as_posix() for p in files - used}
    assert {name for name in others if not name.endswith("kustomization.yaml")} == {
        "scaling/hpa/adapter-rules.yaml"  # a piece of another program's configuration
    }


@pytest.mark.parametrize("target", TARGETS)
def test_kubectl_renders_the_same(
    target: str, rendered: Rendered, folder_of: Callable[[str], Path]
) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on this machine")
    done = subprocess.run(
        [kubectl, "kustomize", str(folder_of(target))], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    # The generated name of the ConfigMap ends with a hash of what it holds.
    text = re.sub(r"(name: hexgen-coordinator)-[a-z0-9]{10}\n", r"\1\n", done.stdout)
    assert by_name(list(yaml.safe_load_all(text))) == by_name(rendered(target))


def by_name(manifests: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m["kind"], m["metadata"]["name"]): m for m in manifests}
