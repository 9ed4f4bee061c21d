"""Build a kustomization as `kubectl kustomize` does, as far as `deploy/kubernetes` needs it.

What it does not know it refuses. Where there is a kubectl, a test compares the two.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]
KNOWN = {
    "apiVersion", "kind", "namespace", "resources", "patches", "images", "generatorOptions",
    "configMapGenerator", "secretGenerator",
}  # fmt: skip
CLUSTER_WIDE = {"Namespace"}


class NotKnownError(Exception):
    """A part of kustomize that is not built here."""


def build(folder: Path) -> list[Resource]:
    """The resources of a kustomization.

    Raises:
        NotKnownError: it uses what this reader does not know.
        OSError: a file that it names is not there.
    """
    wanted = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := wanted.keys() - KNOWN:
        raise NotKnownError(f"{folder}: {sorted(unknown)}")
    resources = _gather(wanted.get("resources", []), folder)
    for kind, generator in (("ConfigMap", "configMapGenerator"), ("Secret", "secretGenerator")):
        for asked in wanted.get(generator, []):
            if wanted["generatorOptions"] != {"disableNameSuffixHash": True}:
                raise NotKnownError("names with a hash")
            _generate(resources, kind, asked, folder)
    for patch in _patches(wanted.get("patches", []), folder):
        _apply(resources, patch)
    for image in wanted.get("images", []):
        _retag(resources, image["name"], f"{image['name']}:{image['newTag']}")
    for each in resources:
        if "namespace" in wanted and each["kind"] not in CLUSTER_WIDE:
            each["metadata"]["namespace"] = wanted["namespace"]
    return resources


def _gather(names: Iterable[str], folder: Path) -> list[Resource]:
    gathered: list[Resource] = []
    for name in names:
        path = folder / name
        for each in build(path) if path.is_dir() else read(path.read_text()):
            if any(identity(each) == identity(other) for other in gathered):
                raise NotKnownError(f"{identity(each)} comes twice")
            gathered.append(each)
    return gathered


def read(text: str) -> list[Resource]:
    """The documents of a file."""
    return [document for document in yaml.safe_load_all(text) if document is not None]


def identity(resource: Mapping[str, Any]) -> tuple[str, str, str]:
    """The resource's API, kind and name."""
    return resource["apiVersion"], resource["kind"], resource["metadata"]["name"]


def _generate(resources: list[Resource], kind: str, asked: Mapping[str, Any], folder: Path) -> None:
    data: dict[str, str] = {}
    for name in asked.get("envs", []):
        lines = (line.strip() for line in (folder / name).read_text().splitlines())
        data |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for literal in asked.get("literals", []):
        data |= dict([literal.split("=", 1)])
    for file in asked.get("files", []):
        key, _, path = file.rpartition("=")
        data[key or Path(path).name] = (folder / path).read_text()
    if asked.get("behavior") == "merge":
        (existing,) = (each for each in resources if identity(each) == ("v1", kind, asked["name"]))
        existing["data"] |= data
        return
    made: Resource = {"apiVersion": "v1", "kind": kind, "metadata": {"name": asked["name"]}}
    if kind == "Secret":
        made["type"] = asked.get("type", "Opaque")
        data = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
    resources.append({**made, "data": data})


def _patches(asked: Iterable[Mapping[str, str]], folder: Path) -> Iterable[Resource]:
    for each in asked:
        if each.keys() - {"path", "patch"}:
            raise NotKnownError(f"a patch with {sorted(each)}")
        yield from read(each.get("patch") or (folder / each["path"]).read_text())


def _apply(resources: list[Resource], patch: Resource) -> None:
    (found,) = (each for each in resources if identity(each) == identity(patch))
    if patch.get("$patch") == "delete":
        resources.remove(found)
    else:
        resources[resources.index(found)] = merge(found, patch)


def merge(value: Any, patch: Any) -> Any:
    """A strategic merge: maps field by field, lists of named entries by name, all else replaced."""
    if isinstance(value, dict) and isinstance(patch, dict):
        if any(key.startswith("$") for key in patch):
            raise NotKnownError(f"a directive in {sorted(patch)}")
        merged = {key: merge(value.get(key), each) for key, each in patch.items()}
        return {**value, **merged}
    if not (_is_named(value) and _is_named(patch)):
        return deepcopy(patch)
    named = {each["name"]: each for each in patch}
    kept = [merge(each, named.pop(each["name"], {})) for each in value]
    return [*named.values(), *kept]


def _is_named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(e, dict) and "name" in e for e in value)


def _retag(node: Any, name: str, image: str) -> None:
    """Name the image of each container that has this one."""
    if isinstance(node, list):
        for each in node:
            _retag(each, name, image)
    elif isinstance(node, dict):
        for key, each in node.items():
            if key in ("containers", "initContainers"):
                for container in each:
                    if container.get("image", "").partition(":")[0] == name:
                        container["image"] = image
            _retag(each, name, image)
