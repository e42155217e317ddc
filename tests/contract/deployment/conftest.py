"""The manifests of `launch/kubernetes`, rendered as `kubectl kustomize` would.

Only what our kustomizations use is understood; anything else is an error here. Where kubectl is
installed, a test compares both results.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).resolve().parents[3] / "launch" / "kubernetes"
TARGETS = [".", "monitoring", "scaling/keda", "scaling/hpa"]

Manifest = dict[str, Any]
_KNOWN = {"apiVersion", "kind", "namespace", "nameSuffix", "labels", "resources", "patches"}
_KNOWN |= {"images", "configMapGenerator"}
_CLUSTER_WIDE = {"Namespace"}


def render(folder: Path) -> list[Manifest]:
    """The manifests of a kustomization."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = kustomization.keys() - _KNOWN
    assert not unknown, f"{folder}: {unknown} is not understood here"
    manifests = []
    for name in kustomization["resources"]:
        path = (folder / name).resolve()
        found = render(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
        manifests += copy.deepcopy(list(found))
    for generator in kustomization.get("configMapGenerator", []):
        data = {name: (folder / name).read_text() for name in generator["files"]}
        metadata = {"name": generator["name"]}
        manifests.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        )
    for patch in kustomization.get("patches", []):
        _patch(manifests, patch)
    for manifest in manifests:
        _change(manifest, kustomization)
    return manifests


def _patch(manifests: list[Manifest], patch: dict[str, Any]) -> None:
    """Apply a JSON patch (RFC 6902) to the manifests that it names."""
    target = patch["target"]
    hit = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == tuple(target.values())]
    assert hit, f"nothing is patched by {target}"
    for manifest in hit:
        for step in yaml.safe_load(patch["patch"]):
            *parents, last = [
                part.replace("~1", "/") for part in step["path"].removeprefix("/").split("/")
            ]
            place: Any = manifest
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place[part]
            assert (last in place) == (step["op"] == "replace"), step
            place[last] = step["value"]


def _change(manifest: Manifest, kustomization: dict[str, Any]) -> None:
    """Namespace, suffix, labels and images of one manifest."""
    metadata = manifest["metadata"]
    metadata["name"] += kustomization.get("nameSuffix", "")
    if manifest["kind"] not in _CLUSTER_WIDE:
        metadata["namespace"] = kustomization["namespace"]
    for row in kustomization.get("labels", []):
        assert row["includeSelectors"]
        for labels in _label_places(manifest):
            labels |= row["pairs"]
    for image in kustomization.get("images", []):
        for container in containers(manifest):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['name']}:{image['newTag']}"


def _label_places(manifest: Manifest) -> Iterator[dict[str, str]]:
    spec = manifest["spec"]
    yield manifest["metadata"].setdefault("labels", {})
    yield spec["selector"]["matchLabels"]
    if "template" in spec:
        yield spec["template"]["metadata"]["labels"]


def containers(manifest: Manifest) -> list[dict[str, Any]]:
    """Of a Deployment: those that come first, and those that stay."""
    if manifest["kind"] != "Deployment":
        return []
    pod = manifest["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.fixture(scope="session")
def rendered() -> Callable[[str], list[Manifest]]:
    """`rendered(".")`: the manifests of a folder of `launch/kubernetes`."""
    return lambda name: render(KUBERNETES / name)


@pytest.fixture(scope="session")
def cluster(rendered: Callable[[str], list[Manifest]]) -> Callable[[str, str], Manifest]:
    """`cluster("Service", "hexgen-link")`: one manifest of the whole cluster."""
    by_name = {(m["kind"], m["metadata"]["name"]): m for m in rendered(".")}
    return lambda kind, name: by_name[kind, name]
