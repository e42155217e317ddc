"""The manifests of `launch/kubernetes`, rendered as `kubectl kustomize` would.

Only what our kustomizations use is understood; anything else is an error here. Where kubectl is
installed, a test compares both results.
"""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).resolve().parents[3] / "launch" / "kubernetes"
TWO = "two-coordinators"
Manifest = dict[str, Any]
_KNOWN = {"apiVersion", "kind", "namespace", "nameSuffix", "labels", "resources", "patches"}
_KNOWN |= {"images", "configMapGenerator", "components"}
_CLUSTER_WIDE = {"Namespace"}


def render(folder: Path, base: Sequence[Manifest] = ()) -> list[Manifest]:
    """The manifests of a kustomization; of a component: `base` as it makes them."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = kustomization.keys() - _KNOWN
    assert not unknown, f"{folder}: {unknown} is not understood here"
    manifests = list(base)
    for name in kustomization["resources"]:
        path = (folder / name).resolve()
        found = render(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
        manifests += copy.deepcopy(list(found))
    for name in kustomization.get("components", []):
        manifests = render(folder / name, manifests)
    for generator in kustomization.get("configMapGenerator", []):
        _generate(manifests, folder, generator)
    for patch in kustomization.get("patches", []):
        _patch(manifests, patch)
    for manifest in manifests:
        _change(manifest, kustomization)
    return manifests


def _patch(manifests: list[Manifest], patch: dict[str, Any]) -> None:
    """Apply a JSON patch (RFC 6902) to the manifests that it names."""
    target = patch["target"]
    hit = [m for m in manifests if _is_meant(m, target)]
    assert hit, f"nothing is patched by {target}"
    for manifest in hit:
        for step in yaml.safe_load(patch["patch"]):
            *parents, last = [
                part.replace("~1", "/") for part in step["path"].removeprefix("/").split("/")
            ]
            place: Any = manifest
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place[part]
            _change_at(place, last, step)


def _is_meant(manifest: Manifest, target: dict[str, str]) -> bool:
    """Whether a patch is for it: `target` has a kind, and a name or a label."""
    metadata = manifest["metadata"]
    label, _, value = target.get("labelSelector", "=").partition("=")
    return (
        manifest["kind"] == target["kind"]
        and metadata["name"] == target.get("name", metadata["name"])
        and metadata.get("labels", {}).get(label, "") == value
    )


def _change_at(place: Any, last: str, step: dict[str, Any]) -> None:
    """One step of a patch, at its place."""
    if isinstance(place, list) and last == "-":
        assert step["op"] == "add", step
        place.append(step["value"])
        return
    key: Any = int(last) if isinstance(place, list) else last
    is_there = key < len(place) if isinstance(place, list) else key in place
    assert is_there == (step["op"] != "add"), step
    match step["op"]:
        case "add" | "replace":
            place[key] = copy.deepcopy(step["value"])
        case "remove":
            del place[key]
        case "test":
            assert place[key] == step["value"], step
        case unknown:
            raise AssertionError(f"{unknown} is not understood here")


def _generate(manifests: list[Manifest], folder: Path, generator: dict[str, Any]) -> None:
    """A ConfigMap of files, instead of the one with its name where it says so."""
    name = generator["name"]
    same = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == ("ConfigMap", name)]
    assert bool(same) == (generator.get("behavior") == "replace"), name
    manifests[:] = [m for m in manifests if m not in same]
    data = {file: (folder / file).read_text() for file in generator["files"]}
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
    manifests.append(made)


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
    """Of a pod's template: those that come first, and those that stay."""
    if manifest["kind"] not in {"Deployment", "StatefulSet"}:
        return []
    pod = manifest["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`folder_of("monitoring")`: a folder of `launch/kubernetes`.

    That of "two-coordinators" is the whole, with the lines that make two coordinators of one.
    """

    def found(name: str) -> Path:
        if name != TWO:
            return KUBERNETES / name
        copied = tmp_path_factory.mktemp("kubernetes") / "two"
        shutil.copytree(KUBERNETES, copied)
        path = copied / "kustomization.yaml"
        text = path.read_text()
        lines = f"#components:\n#  - {TWO}\n"
        assert lines in text
        path.write_text(text.replace(lines, lines.replace("#", "")))
        return copied

    return functools.cache(found)


@pytest.fixture(scope="session")
def rendered(folder_of: Callable[[str], Path]) -> Callable[[str], list[Manifest]]:
    """`rendered(".")`: the manifests of a folder of `launch/kubernetes`."""
    return lambda name: render(folder_of(name))


@pytest.fixture(scope="session")
def cluster(rendered: Callable[[str], list[Manifest]]) -> Callable[[str, str], Manifest]:
    """`cluster("Service", "hexgen-link")`: one manifest of the whole cluster."""
    return _finder(rendered("."))


@pytest.fixture(scope="session")
def pair(rendered: Callable[[str], list[Manifest]]) -> Callable[[str, str], Manifest]:
    """The same of the cluster with two coordinators."""
    return _finder(rendered(TWO))


def _finder(manifests: list[Manifest]) -> Callable[[str, str], Manifest]:
    by_name = {(m["kind"], m["metadata"]["name"]): m for m in manifests}
    return lambda kind, name: by_name[kind, name]
