"""What `deploy/` promises about its containers: rights, limits, networks, secrets and images."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.compose import (
    DEPLOY,
    IN_CONTAINERS,
    OURS,
    fill_in,
    our_services,
    read_compose,
    read_env,
    seen_from,
    sees_the_outside,
)

ROOT = DEPLOY.parent
COMPOSE = read_compose()
CONTAINERS: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVICES = our_services(COMPOSE)
SERVERS = CONTAINERS.keys() - SERVICES.keys()
README = (DEPLOY / "README.md").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
EXAMPLE = read_env(DEPLOY / ".env.example")
GIB = 2**30
UNITS = {"g": GIB, "m": 2**20}
OUTSIDE = {"fetcher", "notifier"}


def size(text: str) -> int:
    """Bytes, of what Compose takes for them."""
    number, unit = re.fullmatch(r"(\d+)([mg])", fill_in(text, EXAMPLE)).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def login_of(name: str) -> str:
    """The service that a container of ours runs; a server's own name."""
    return CONTAINERS[name]["command"][-1] if name in SERVICES else name


# ----------------------------------------------------------------------------- rights and limits


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_may_do_nothing_as_root(name: str) -> None:
    entry = CONTAINERS[name]
    assert entry["cap_drop"] == ["ALL"]
    assert entry["security_opt"] == ["no-new-privileges:true"]
    assert not entry.keys() & {"cap_add", "privileged", "pid", "ipc", "network_mode", "devices"}
    assert name in SERVICES or entry["user"] not in ("root", "0", 0)


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_writes_to_named_places_only(name: str) -> None:
    entry = CONTAINERS[name]
    assert entry["read_only"] is True
    for place in entry["tmpfs"]:
        assert re.fullmatch(r"/[\w/]+:size=\d+m,mode=1777", place), "a size, and for any user"
    for volume in entry.get("volumes", []):
        source, _, *options = volume.split(":")
        assert source in COMPOSE["volumes"] or options == ["ro"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_shares_no_volume_with_another(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        assert volume == f"{login_of(name)}:/var/lib/everydream"


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_has_limits_of_memory_processes_and_log(name: str) -> None:
    entry = CONTAINERS[name]
    temporary = sum(size(re.findall(r"size=(\d+m)", place)[0]) for place in entry["tmpfs"])
    assert size(entry["mem_limit"]) > 4 * temporary, "temporary files count as memory"
    assert entry["memswap_limit"] == entry["mem_limit"], "else as much again is swapped"
    assert 0 < entry["pids_limit"] <= 2048
    assert entry["logging"]["driver"] == "local"
    assert entry["logging"]["options"] == {"max-size": "20m", "max-file": "5"}


def test_a_fetcher_has_memory_for_all_that_it_reads_at_a_time() -> None:
    (default,) = re.findall(
        r"concurrency=settings\.concurrency or (\d+)",
        (ROOT / "services/fetcher/__main__.py").read_text(),
    )
    assert size(SERVICES["fetcher"]["mem_limit"]) >= int(default) * 2 * GIB + 2 * GIB


@pytest.mark.parametrize("login", [*OURS, *sorted(SERVERS)])
def test_the_readme_names_the_limit_of_memory(login: str) -> None:
    ((told, by),) = re.findall(rf"^\| {login} \| (\d+[gm]) \|(?: `(\w+)`)?", README, re.MULTILINE)
    limits = {e["mem_limit"] for name, e in CONTAINERS.items() if login_of(name) == login}
    assert limits == {f"${{{by}:-{told}}}" if by else told}
    if by:
        assert f"#{by}={told}" in (DEPLOY / ".env.example").read_text().splitlines()


# ----------------------------------------------------------------------------- networks


def expected_sight(name: str) -> set[str]:
    """Whom a container must reach, and those that run the same service, which listen to nobody."""
    if name in SERVICES:
        servers = {"rabbitmq", "s3"} | ({"postgres"} if name == "gateway" else set())
        return servers | {each for each in SERVICES if login_of(each) == login_of(name)} - {name}
    return {"gateway"} if name == "postgres" else {*SERVICES, "rabbitmq", "s3"} - {name}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_reaches_what_it_must_and_no_more(name: str) -> None:
    assert seen_from(COMPOSE, name) == expected_sight(name)
    assert sees_the_outside(COMPOSE, name) is (name in OUTSIDE)


def test_a_container_with_a_port_is_in_a_network_that_has_ports() -> None:
    with_ports = {name for name, entry in CONTAINERS.items() if "ports" in entry}
    assert with_ports == {n for n, entry in CONTAINERS.items() if "published" in entry["networks"]}
    assert "internal" not in COMPOSE["networks"]["published"]


def test_with_an_s3_server_outside_all_that_use_it_get_there() -> None:
    added = read_compose("compose.own-s3.yaml")["services"]
    assert all(entry == {"networks": ["outside"]} for entry in added.values())
    assert added.keys() | OUTSIDE == SERVICES.keys()


# ----------------------------------------------------------------------------- secrets


def given_paths(entry: Mapping[str, Any]) -> set[str]:
    """The secrets that a container's settings name."""
    values = entry.get("environment", {}).values()
    return {text.removeprefix(IN_CONTAINERS) for text in values if text and IN_CONTAINERS in text}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gets_its_secrets_as_files_and_no_other(name: str) -> None:
    entry = SERVICES[name]
    assert given_paths(entry) == set(entry["secrets"])
    for variable, value in entry["environment"].items():
        if re.search(r"SECRET|PASSWORD|TOKEN|CREDENTIALS|KEYS|AMQP|DATABASE", variable):
            assert value.startswith(IN_CONTAINERS), variable


@pytest.mark.parametrize("name", sorted(SERVERS))
def test_a_server_reads_the_secrets_that_it_gets(name: str) -> None:
    entry = CONTAINERS[name]
    mounted = [v.split(":")[0] for v in entry["volumes"] if v.startswith("./")]
    read = "\n".join((DEPLOY / file).read_text() for file in mounted)
    assert all(s in given_paths(entry) or IN_CONTAINERS + s in read for s in entry["secrets"])
    assert entry["secrets"]


def test_no_secret_is_asked_for_in_the_environment() -> None:
    text = (DEPLOY / "compose.yaml").read_text() + (DEPLOY / ".env.example").read_text()
    asked = re.findall(r"\$\{(\w+)", text) + re.findall(r"^#?(\w+)=", text, re.MULTILINE)
    assert asked
    assert [n for n in asked if re.search(r"SECRET|PASSWORD|TOKEN|_KEY|API_KEYS", n)] == []


def test_every_secret_is_a_file_and_used() -> None:
    used = {secret for entry in CONTAINERS.values() for secret in entry["secrets"]}
    assert used == COMPOSE["secrets"].keys()
    assert "configs" not in COMPOSE, "nothing else can be put into a read-only container"
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"secrets/{name}"}


# ----------------------------------------------------------------------------- images

WHOLE_VERSION = {"rabbitmq": 3, "postgres": 2, "chrislusf/seaweedfs": 2, "python": 3, "node": 3}
"""Numbers in a version that is not moved to another release."""


def images() -> Iterator[str]:
    yield from (entry["image"] for entry in CONTAINERS.values() if "image" in entry)
    yield from re.findall(r"^ARG (?:PYTHON|NODE)=(\S+)$", DOCKERFILE, re.MULTILINE)


def test_every_image_is_pinned_to_the_last_digit() -> None:
    others = [image for image in images() if not image.startswith("everydream-")]
    pinned = dict(image.split(":") for image in others)
    assert pinned.keys() == WHOLE_VERSION.keys()
    for image, tag in pinned.items():
        numbers = re.fullmatch(r"(\d+(?:\.\d+)+)(-[a-z-]+)?", tag)
        assert numbers, tag
        assert numbers[1].count(".") + 1 == WHOLE_VERSION[image], tag
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON}", "${NODE}"}


def test_what_the_page_is_made_of_is_compared_with_its_hash() -> None:
    commands = [
        line for line in DOCKERFILE.splitlines() if line.startswith("RUN") and "npm " in line
    ]
    assert [re.findall(r" npm (?:run )?(\w+)", line) for line in commands] == [
        ["ci"],
        ["types", "build"],
    ]
    locked = json.loads((ROOT / "services/gateway/console/package-lock.json").read_text())
    packages = {name: each for name, each in locked["packages"].items() if name}
    assert all(each["integrity"].startswith("sha512-") for each in packages.values())


def test_what_an_image_installs_is_compared_with_its_hash_or_is_our_own() -> None:
    commands = re.sub(r"\\\n\s*", "", DOCKERFILE)
    installs = re.findall(r"pip (?:install|wheel) ([^&\n]*)", commands)
    assert len(installs) == 4
    downloads = [line for line in installs if "--no-index" not in line]
    assert len(downloads) == 2
    for line in downloads:
        assert "--require-hashes" in line
        assert "--only-binary :all:" in line
    for line in set(installs) - set(downloads):
        assert "--no-deps" in line


# ----------------------------------------------------------------------------- lock files

LOCKED = re.compile(
    r"^([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)
LOCKS = sorted(path.stem for path in (DEPLOY / "requirements").glob("*.txt"))
IMAGES = [name for name in LOCKS if name != "build"]
BUILT_FOR = {"xformers==0.0.35": {"torch": "2.10.0", "cuda": "12", "requires": ">=2.10"}}
"""For a new version: ``cpp_lib.json`` and ``METADATA`` in the wheel, ``readelf -d _C.so``."""
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def lock(name: str) -> dict[str, str]:
    """A lock file's packages with their versions."""
    text = (DEPLOY / "requirements" / f"{name}.txt").read_text()
    found = LOCKED.findall(text)
    rest = LOCKED.sub("", text)
    assert all(line.startswith("#") for line in rest.splitlines()), "each is pinned, with hashes"
    return {canonicalize_name(package): version for package, version, _ in found}


def constraints(file: str = "constraints.txt") -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def needed(requirements: list[str], extras: set[str], found: set[str]) -> set[str]:
    """Add all that these need, and what that needs, as the packages installed here say."""
    for text in requirements:
        need = Requirement(text)
        marked = [{"extra": extra} for extra in ("", *extras)]
        if need.marker and not any(need.marker.evaluate(values) for values in marked):
            continue
        if (name := canonicalize_name(need.name)) not in found:
            found.add(name)
            needed(requires(name) or [], need.extras, found)
    return found


@pytest.mark.parametrize("cpu_pip_args", ["", "--index-url https://cpu.example"])
def test_every_image_has_a_lock_file_and_every_lock_file_an_image(cpu_pip_args: str) -> None:
    values = EXAMPLE | {"CPU_PIP_ARGS": cpu_pip_args}
    args = [entry["build"]["args"] for entry in SERVICES.values()]
    used = {fill_in(each.get("LOCK", each["SERVICE"]), values) for each in args}
    kinds = {"", "-cuda"} | ({"-cpu"} if cpu_pip_args else set())
    assert used <= set(IMAGES)
    assert {"trainer-cpu" in used, "trainer" in used} == {True, False}
    assert set(IMAGES) >= {f"trainer{kind}" for kind in kinds}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_the_versions_that_were_tested(name: str) -> None:
    tested = constraints() | (constraints("constraints-cuda.txt") if name.endswith("-cuda") else {})
    for package, version in lock(name).items():
        local = version.removesuffix("+cpu") if name.endswith("-cpu") else version
        assert local == tested.get(package, local), package


@pytest.mark.parametrize("name", IMAGES)
def test_a_lock_file_has_all_that_its_image_needs(name: str) -> None:
    service, _, kind = name.partition("-")
    extras = PYPROJECT["project"]["optional-dependencies"]
    direct = PYPROJECT["project"]["dependencies"] + extras[service]
    found = needed(direct, set(), set())
    pinned = lock(name)
    of_newest_torch = {"setuptools"} if kind == "cuda" else set()  # which is what is installed here
    assert found - of_newest_torch <= pinned.keys()
    assert ("xformers" in pinned) is (kind == "cuda")
    if service in ("trainer", "inferencer"):
        assert pinned["torch"].endswith("+cpu") is (kind == "cpu")
    for text in direct:
        need = Requirement(text)
        assert need.specifier.contains(pinned[canonicalize_name(need.name)]), text


def test_a_card_changes_no_package_but_those_of_its_own_list() -> None:
    ours, cards = constraints(), constraints("constraints-cuda.txt")
    assert not ours.keys() & cards.keys()
    for service in ("trainer", "inferencer"):
        plain, card = lock(service), lock(f"{service}-cuda")
        changed = {name for name, version in card.items() if plain.get(name) != version}
        assert changed <= cards.keys()
    assert cards.keys() <= lock("trainer-cuda").keys()
    page = (ROOT / "docs/gpu.md").read_text()
    for name, version in (("torch", cards["torch"]), ("xformers", cards["xformers"])):
        assert re.search(rf"^\| {name} \|[^|]*\| {re.escape(version)} \|", page, re.MULTILINE)
    assert f"| torch | {lock('trainer')['torch']} |" in page


@pytest.mark.parametrize("name", [name for name in IMAGES if name.endswith("-cuda")])
def test_the_torch_of_a_card_is_the_one_that_its_xformers_was_built_for(name: str) -> None:
    """By xformers' own build record and its library's needs; its metadata asks for less."""
    pinned = lock(name)
    built = BUILT_FOR[f"xformers=={pinned['xformers']}"]
    assert Requirement(f"torch{built['requires']}").specifier.contains(pinned["torch"])
    assert pinned["torch"] == built["torch"]
    assert pinned[f"nvidia-cuda-runtime-cu{built['cuda']}"].startswith(f"{built['cuda']}.")
    assert not [each for each in pinned if re.fullmatch(r"nvidia-.*-cu(?!12)\d+", each)]


def test_what_needs_torch_takes_that_of_a_card() -> None:
    pinned = lock("trainer-cuda") | lock("inferencer-cuda")
    installed = {canonicalize_name(each.metadata["Name"]) for each in distributions()}
    asked = {
        name: need
        for name in pinned.keys() & installed - {"xformers"}
        for need in map(Requirement, requires(name) or [])
        if need.name == "torch" and (need.marker is None or need.marker.evaluate({"extra": ""}))
    }
    assert {"accelerate", "bitsandbytes", "compel"} <= asked.keys()
    for name, need in asked.items():
        assert need.specifier.contains(pinned["torch"]), f"{name} needs {need}"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_pip_finds_all_that_a_card_needs_and_no_contradiction(tmp_path: Path) -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    asked = [text for name in ("trainer", "inferencer", "cuda") for text in extras[name]]
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
        "--only-binary", ":all:", "--report", str(tmp_path / "report.json"),
        "-c", "constraints.txt", "-c", "constraints-cuda.txt", *asked,
    ]  # fmt: skip
    environment = {**os.environ, "PIP_CONSTRAINT": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "report.json").read_text())["install"]
    versions = {
        canonicalize_name(each["metadata"]["name"]): each["metadata"]["version"] for each in found
    }
    assert constraints("constraints-cuda.txt").items() <= versions.items()
    assert versions.items() <= (lock("trainer-cuda") | lock("inferencer-cuda")).items()


def test_what_builds_our_own_package_is_locked_too() -> None:
    for text in PYPROJECT["build-system"]["requires"]:
        need = Requirement(text)
        assert need.specifier.contains(lock("build")[canonicalize_name(need.name)])


def test_make_writes_the_lock_files_anew() -> None:
    command = ["make", "--dry-run", "lock", "CPU_LOCK_ARGS=--find-links ."]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    written: set[str] = set()
    for loop in said.split("for name in ")[1:]:
        names, _, body = loop.partition("; do")
        for file in re.findall(r"--output-file deploy/requirements/(\S+)\.txt", body):
            written |= {file.replace("$name", name) for name in names.split()}
    assert written == set(LOCKS)
    assert "--generate-hashes" in said
