"""What `deploy/kubernetes` promises: valid manifests; rights, limits, networks, secrets, probes.

Nothing is applied to a cluster here. `deploy/compose.yaml` is the model, and is compared with.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml

from shared.messaging.messages import Stage
from shared.service_process import STOP_SECONDS
from shared.settings import from_environment
from shared.worker.runtime import GRACE_HEARTBEATS
from tests.support import custom_resources, kustomize
from tests.support.compose import (
    DEPLOY,
    OURS,
    fill_in,
    make_secrets,
    our_services,
    read_compose,
    read_env,
    seen_from,
    sees_the_outside,
)
from tests.support.kustomize import Resource, identity

ROOT = DEPLOY.parent
COMPOSE = read_compose()
OVERLAYS = ("cpu", "gpu", "keda", "example")
GPU_SERVICES = ("trainer", "inferencer")
OLDEST, NEWEST = "1.31", kubernetes_validate.latest_version()
"""Versions of Kubernetes."""
PART, COMPONENT = "app.kubernetes.io/part-of", "app.kubernetes.io/component"
NAMESPACE = "kubernetes.io/metadata.name"
SERVERS = {
    "rabbitmq": {"app.kubernetes.io/name": "rabbitmq"},
    "postgres": {"cnpg.io/cluster": "postgres"},
}
"""The labels that the operators give the pods of these servers."""
PORTS = {"rabbitmq": 5672, "postgres": 5432}
HOME, METRICS_PORT = "/var/lib/everydream", 9464


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`deploy/kubernetes` as somebody has it who has made the secrets."""
    deploy = tmp_path_factory.mktemp("deploy")
    shutil.copytree(DEPLOY / "kubernetes", deploy / "kubernetes")
    make_secrets(deploy, into="kubernetes/secrets")
    return deploy / "kubernetes"


@pytest.fixture(scope="module")
def built(folder: Path) -> dict[str, list[Resource]]:
    return {name: kustomize.build(folder / "overlays" / name) for name in OVERLAYS}


def of_kind(resources: list[Resource], kind: str) -> dict[str, Resource]:
    return {each["metadata"]["name"]: each for each in resources if each["kind"] == kind}


def pods(resources: list[Resource]) -> dict[str, dict[str, Any]]:
    """The templates of the pods of ours, by service."""
    deployments = of_kind(resources, "Deployment").items()
    scaled = of_kind(resources, "ScaledJob").items()
    return {name: each["spec"]["template"] for name, each in deployments} | {
        name: each["spec"]["jobTargetRef"]["template"] for name, each in scaled
    }


def each_pod(built: Mapping[str, list[Resource]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every service's pod of every overlay, and its name."""
    for overlay, resources in built.items():
        found = pods(resources)
        assert found.keys() == set(OURS), overlay
        yield from found.items()


def container_of(pod: Mapping[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    assert "initContainers" not in pod["spec"]
    found: dict[str, Any] = container
    return found


# ----------------------------------------------------------------------------- as manifests


@pytest.mark.long  # it needs kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_built_here_as_kubectl_does(
    overlay: str, folder: Path, built: dict[str, list[Resource]]
) -> None:
    command = ["kubectl", "kustomize", str(folder / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = {identity(each): each for each in kustomize.read(done.stdout)}
    for secret in of_kind([*theirs.values()], "Secret").values():
        secret["data"] = {key: text.replace("\n", "") for key, text in secret["data"].items()}
    assert {identity(each): each for each in built[overlay]} == theirs


def test_every_manifest_is_one_that_kubernetes_takes(built: dict[str, list[Resource]]) -> None:
    checked: list[Resource] = []
    for each in (each for resources in built.values() for each in resources):
        if each in checked:
            continue
        checked.append(each)
        parts = [each]
        if custom_resources.is_custom(each):
            custom_resources.validate(each)
            parts = custom_resources.kubernetes_parts(each)
        for part in parts:
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(part, version, strict=True)
    assert len(checked) > 30


def test_a_word_that_is_mistyped_is_found_wherever_it_is(
    built: dict[str, list[Resource]],
) -> None:
    (scaled, *_) = of_kind(built["keda"], "ScaledJob").values()
    for path in (("spec",), ("spec", "rollout"), ("spec", "triggers", 0, "metadata")):
        wrong = node = deepcopy(scaled)
        for step in path:
            node = node[step]  # type: ignore[index]
        node["stratgy"] = "gradual"
        with pytest.raises(jsonschema.ValidationError, match="stratgy"):
            custom_resources.validate(wrong)
    (job,) = custom_resources.kubernetes_parts(deepcopy(scaled))
    job["spec"]["template"]["spec"]["containers"][0]["commands"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="commands"):
        kubernetes_validate.validate(job, NEWEST, strict=True)


def test_without_its_secrets_nothing_is_built_and_the_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="amqp-url-gateway"):
        kustomize.build(DEPLOY / "kubernetes" / "overlays" / "cpu")


def test_everything_is_in_one_namespace(built: dict[str, list[Resource]]) -> None:
    for resources in built.values():
        (namespace,) = of_kind(resources, "Namespace")
        rest = [each for each in resources if each["kind"] != "Namespace"]
        assert {each["metadata"]["namespace"] for each in rest} == {namespace}


def test_every_image_has_the_version_of_the_project(built: dict[str, list[Resource]]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for overlay, resources in built.items():
        kind = "-cpu" if overlay == "cpu" else "-cuda"
        for name, pod in pods(resources).items():
            tag = version + (kind if name in GPU_SERVICES else "")
            assert container_of(pod)["image"] == f"everydream-{name}:{tag}"


# ----------------------------------------------------------------------------- rights and limits


def test_a_pod_may_do_nothing_that_it_need_not(built: dict[str, list[Resource]]) -> None:
    user = int(re.findall(r"--uid (\d+)", (DEPLOY / "Dockerfile").read_text())[0])
    for _, pod in each_pod(built):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"}
        assert container_of(pod)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_a_pod_writes_to_its_home_and_to_tmp_only_and_not_without_end(
    built: dict[str, list[Resource]],
) -> None:
    for name, pod in each_pod(built):
        volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
        places = {each["mountPath"]: each for each in container_of(pod)["volumeMounts"]}
        writes = {path for path, each in places.items() if not each.get("readOnly")}
        with_home = "volumes" in our_services(COMPOSE).get(name, {"volumes": ()})
        assert writes == ({"/tmp", HOME} if with_home else {"/tmp"})  # noqa: S108 - the pod's own
        assert all("sizeLimit" in volumes[places[path]["name"]]["emptyDir"] for path in writes)
        assert len(places) == len(volumes)


def test_a_pod_has_the_memory_of_its_container_in_compose(
    built: dict[str, list[Resource]],
) -> None:
    by_service = {entry["command"][-1]: entry for entry in our_services(COMPOSE).values()}
    example = read_env(DEPLOY / ".env.example")
    for name, pod in each_pod(built):
        resources = container_of(pod)["resources"]
        limit = fill_in(by_service[name]["mem_limit"], example).replace("g", "Gi")
        assert resources["limits"]["memory"] == resources["requests"]["memory"] == limit
        assert "cpu" in resources["requests"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whoever_computes_on_a_card_gets_one_and_nobody_else(
    overlay: str, built: dict[str, list[Resource]]
) -> None:
    card = {"nvidia.com/gpu": "1"}.items()
    for name, pod in pods(built[overlay]).items():
        resources = container_of(pod)["resources"]
        wants = overlay != "cpu" and name in GPU_SERVICES
        for part in ("requests", "limits"):
            assert (card <= resources[part].items()) is wants
        assert ("tolerations" in pod["spec"]) is wants
        device = environment_of(pod).get("EVERYDREAM_DEVICE")
        assert device == (("cuda" if wants else "cpu") if name in GPU_SERVICES else None)


# ----------------------------------------------------------------------------- settings, secrets


def environment_of(pod: Mapping[str, Any]) -> dict[str, str]:
    """What a container is given by name."""
    return {each["name"]: each["value"] for each in container_of(pod)["env"]}


def whole_environment(resources: list[Resource], name: str) -> dict[str, str]:
    (settings,) = of_kind(resources, "ConfigMap").values()
    pod = pods(resources)[name]
    assert container_of(pod)["envFrom"] == [
        {"configMapRef": {"name": settings["metadata"]["name"]}}
    ]
    found: dict[str, str] = settings["data"] | environment_of(pod)
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_setting_is_one_and_has_a_value_that_it_takes(
    overlay: str, folder: Path, built: dict[str, list[Resource]]
) -> None:
    documented = (ROOT / "docs" / "settings.md").read_text()
    for name in OURS:
        environment = whole_environment(built[overlay], name)
        for variable in environment:
            known = variable.removesuffix("_FILE") if variable[:4] == "EVER" else variable
            assert f"`{known}`" in documented or variable == "PYTORCH_ALLOC_CONF", variable
        here = {
            key: text.replace("/run/secrets", str(folder / "secrets"))
            for key, text in environment.items()
        }
        settings = from_environment(here)
        assert settings.store_url.startswith("s3://")
        assert urlsplit(settings.amqp_url).username == name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_service_gets_its_secrets_as_files_and_no_other(
    overlay: str, built: dict[str, list[Resource]]
) -> None:
    in_compose = {e["command"][-1]: e["secrets"] for e in our_services(COMPOSE).values()}
    secrets = of_kind(built[overlay], "Secret")
    for name, pod in pods(built[overlay]).items():
        (volume,) = (each for each in pod["spec"]["volumes"] if "secret" in each)
        assert volume["secret"] == {"secretName": name, "defaultMode": 0o440}
        files = secrets[name]["data"].keys()
        assert files == set(in_compose[name])
        values = whole_environment(built[overlay], name).values()
        named = {v.removeprefix("/run/secrets/") for v in values if "/run/secrets/" in v}
        assert named == files


def test_no_manifest_has_a_secret_of_its_own() -> None:
    command = ["git", "ls-files", "-co", "--exclude-standard", "deploy/kubernetes"]
    tracked = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in tracked if "/secrets/" in name} == {
        "deploy/kubernetes/secrets/.gitignore",
        "deploy/kubernetes/secrets/kustomization.yaml",
    }
    assert not [name for name in tracked if "kind: Secret" in (ROOT / name).read_text()]


# ----------------------------------------------------------------------------- start, life, end


def test_every_pod_is_asked_how_it_is(built: dict[str, list[Resource]]) -> None:
    for name, pod in each_pod(built):
        container = container_of(pod)
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        assert ports["metrics"] == METRICS_PORT
        asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness")}
        # What needs nothing else: an outage of the database must restart nobody.
        assert all(each == {"path": "/livez", "port": "metrics"} for each in asked.values())
        ready = {"path": "/readyz", "port": "metrics"}
        if name == "gateway":
            ready = {"path": "/healthz", "port": "http"}
            assert ports["http"] == int(environment_of(pod)["EVERYDREAM_PORT"])
        assert container["readinessProbe"]["httpGet"] == ready
        assert (
            pod["metadata"]["annotations"].items()
            >= {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(METRICS_PORT),
                "prometheus.io/path": "/metrics",
            }.items()
        )


def test_a_pod_is_given_the_time_that_its_service_may_take_to_end(
    built: dict[str, list[Resource]],
) -> None:
    for name, pod in each_pod(built):
        drain = float(environment_of(pod).get("EVERYDREAM_DRAIN_SECONDS", 0))
        saving = GRACE_HEARTBEATS * from_environment({}).heartbeat if name == "trainer" else 0.0
        assert pod["spec"]["terminationGracePeriodSeconds"] > drain + saving + STOP_SECONDS


def test_one_gateway_is_always_there(built: dict[str, list[Resource]]) -> None:
    for resources in built.values():
        gateway = of_kind(resources, "Deployment")["gateway"]
        (budget,) = of_kind(resources, "PodDisruptionBudget").values()
        assert gateway["spec"]["replicas"] > budget["spec"]["minAvailable"] > 0
        labels = gateway["spec"]["template"]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"] == labels
        spread = gateway["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {each["topologyKey"] for each in spread} == {
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
        }
        for each in spread:
            assert each["labelSelector"]["matchLabels"].items() <= labels.items()


def test_an_upgrade_needs_no_card_more(built: dict[str, list[Resource]]) -> None:
    for name in GPU_SERVICES:
        strategy = of_kind(built["gpu"], "Deployment")[name]["spec"]["strategy"]
        assert strategy == {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}


def test_labels_say_whose_pod_it_is(built: dict[str, list[Resource]]) -> None:
    for name, pod in each_pod(built):
        assert pod["metadata"]["labels"] == {PART: "everydream", COMPONENT: name}
    for name, each in of_kind(built["gpu"], "Deployment").items():
        assert each["spec"]["selector"]["matchLabels"] == {PART: "everydream", COMPONENT: name}


# ----------------------------------------------------------------------------- networks


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a selector of labels takes these."""
    for wanted in selector.get("matchExpressions", []):
        assert wanted["operator"] == "In"
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def rules(
    resources: list[Resource], labels: Mapping[str, str], way: str
) -> list[tuple[str, dict[str, Any]]]:
    """What is let through for a pod with these labels, with the policy's name."""
    policies = of_kind(resources, "NetworkPolicy").items()
    found = [(name, p["spec"]) for name, p in policies if selects(p["spec"]["podSelector"], labels)]
    assert any(way.title() in spec["policyTypes"] for _, spec in found), "all is let through"
    return [(name, rule) for name, spec in found for rule in spec.get(way, [])]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", OURS)
def test_a_service_reaches_what_it_reaches_in_compose_and_no_more(
    overlay: str, service: str, built: dict[str, list[Resource]]
) -> None:
    labels = {PART: "everydream", COMPONENT: service}
    reached = set()
    for policy, rule in rules(built[overlay], labels, "egress"):
        for peer in rule["to"]:
            if "ipBlock" in peer:
                reached.add("s3" if policy == "store" else policy)
            elif "namespaceSelector" in peer:
                assert peer["namespaceSelector"] == {"matchLabels": {NAMESPACE: "kube-system"}}
                assert [each["port"] for each in rule["ports"]] == [53, 53]
            else:
                (server,) = (n for n, each in SERVERS.items() if selects(peer["podSelector"], each))
                assert rule["ports"] == [{"protocol": "TCP", "port": PORTS[server]}]
                reached.add(server)
    container = service if service in COMPOSE["services"] else f"{service}-cpu"
    in_compose = seen_from(COMPOSE, container) & {"rabbitmq", "postgres", "s3"}
    outside = {"outside"} if sees_the_outside(COMPOSE, container) else set()
    assert reached == in_compose | outside


def test_the_way_to_the_outside_leads_to_no_private_network(
    built: dict[str, list[Resource]],
) -> None:
    ((_, rule),) = (
        each for each in rules(built["cpu"], {PART: "everydream", COMPONENT: "fetcher"}, "egress")
        if each[0] == "outside"
    )  # fmt: skip
    left_out = {block for peer in rule["to"] for block in peer["ipBlock"]["except"]}
    assert left_out >= {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"}
    assert left_out >= {"fc00::/7", "fe80::/10"}


@pytest.mark.parametrize("service", OURS)
def test_a_service_is_reached_by_nobody_but_clients_and_those_that_watch(
    service: str, built: dict[str, list[Resource]]
) -> None:
    names = {each["name"] for each in container_of(pods(built["cpu"])[service])["ports"]}
    labels = {PART: "everydream", COMPONENT: service}
    let_in = dict(rules(built["cpu"], labels, "ingress"))
    assert let_in.keys() == ({"requests", "metrics"} if service == "gateway" else {"metrics"})
    for rule in let_in.values():
        assert {each["port"] for each in rule["ports"]} <= names
    (watching,) = let_in["metrics"]["from"]
    (expression,) = watching["namespaceSelector"]["matchExpressions"]
    assert (expression["key"], expression["values"]) == (NAMESPACE, ["monitoring", "keda"])


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_lets_in_whom_it_serves(server: str, built: dict[str, list[Resource]]) -> None:
    let_in = rules(built["example"], SERVERS[server], "ingress")
    served = {
        service
        for service in OURS
        for _, rule in let_in
        for peer in rule["from"]
        if "podSelector" in peer
        and selects(peer["podSelector"], {PART: "everydream", COMPONENT: service})
        and {"protocol": "TCP", "port": PORTS[server]} in rule["ports"]
    }
    assert served == (set(OURS) if server == "rabbitmq" else {"gateway"})


# ----------------------------------------------------------------------------- the servers


def test_the_servers_are_where_the_secrets_say_and_know_their_users(
    folder: Path, built: dict[str, list[Resource]]
) -> None:
    (rabbitmq,) = of_kind(built["example"], "RabbitmqCluster")
    (postgres,) = of_kind(built["example"], "Cluster").values()
    secrets = folder / "secrets"
    for service in OURS:
        assert urlsplit((secrets / f"amqp-url-{service}").read_text()).hostname == rabbitmq
    (reached,) = postgres["spec"]["managed"]["services"]["additional"]
    database = urlsplit((secrets / "database-url").read_text().strip())
    assert reached["selectorType"] == "rw"
    assert reached["serviceTemplate"]["metadata"]["name"] == database.hostname
    created = postgres["spec"]["bootstrap"]["initdb"]
    assert (created["owner"], created["database"]) == (database.username, database.path[1:])
    owner = of_kind(built["example"], "Secret")[created["secret"]["name"]]
    assert owner["data"].keys() == {"username", "password"}


def test_the_broker_has_the_settings_of_compose(built: dict[str, list[Resource]]) -> None:
    (rabbitmq,) = of_kind(built["example"], "RabbitmqCluster").values()
    config = rabbitmq["spec"]["rabbitmq"]["additionalConfig"].splitlines()
    files = ("rabbitmq.conf", "rabbitmq-logins.conf")
    lines = [line for file in files for line in (DEPLOY / file).read_text().splitlines()]
    assert sorted(config) == sorted(line for line in lines if line and line[0] != "#")
    assert rabbitmq["spec"]["image"] == COMPOSE["services"]["rabbitmq"]["image"]


# ----------------------------------------------------------------------------- KEDA


@pytest.mark.parametrize("service", GPU_SERVICES)
def test_what_keda_starts_is_the_worker_of_the_deployment_for_one_job(
    service: str, built: dict[str, list[Resource]]
) -> None:
    assert not of_kind(built["keda"], "Deployment").keys() & set(GPU_SERVICES)
    job = of_kind(built["keda"], "ScaledJob")[service]["spec"]["jobTargetRef"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (1, 1, 0)
    pod, deployed = deepcopy(job["template"]), deepcopy(pods(built["gpu"])[service])
    assert pod["spec"].pop("restartPolicy") == "Never"
    container, model = container_of(pod), container_of(deployed)
    assert container.pop("command") == [*model.pop("command"), "--jobs", "1"]
    model["env"] = [each for each in model["env"] if each["name"] != "EVERYDREAM_DRAIN_SECONDS"]
    assert sorted(container.pop("env"), key=str) == sorted(model.pop("env"), key=str)
    assert pod["spec"] == deployed["spec"]
    assert (
        pod["metadata"]["annotations"].items()
        >= {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }.items()
    )


STAGES = {"trainer": "training", "inferencer": "generation"}


@pytest.mark.parametrize("service", GPU_SERVICES)
def test_keda_reads_the_open_jobs_of_the_service_from_any_gateway(
    service: str, built: dict[str, list[Resource]]
) -> None:
    spec = of_kind(built["keda"], "ScaledJob")[service]["spec"]
    assert spec["rollout"] == {"strategy": "gradual"}
    assert spec["scalingStrategy"] == {"strategy": "default"}
    (trigger,) = spec["triggers"]
    address = urlsplit(trigger["metadata"]["url"])
    gateway = of_kind(built["keda"], "Service")["gateway"]
    assert address.hostname == f"gateway.{gateway['metadata']['namespace']}.svc"
    ports = {each["port"]: each["targetPort"] for each in gateway["spec"]["ports"]}
    assert (ports[address.port or 80], address.path) == ("metrics", "/metrics")
    asked = re.fullmatch(
        r'everydream_stage_open_jobs\{stage="(\w+)"\}', trigger["metadata"]["valueLocation"]
    )
    assert asked
    assert asked[1] == STAGES[service]
    assert asked[1] in Stage.__args__  # type: ignore[attr-defined]


def test_the_service_reaches_ports_that_the_gateway_has(built: dict[str, list[Resource]]) -> None:
    gateway = container_of(pods(built["cpu"])["gateway"])
    service = of_kind(built["cpu"], "Service")["gateway"]["spec"]
    assert service["selector"] == {PART: "everydream", COMPONENT: "gateway"}
    names = {each["name"] for each in gateway["ports"]}
    assert {each["targetPort"] for each in service["ports"]} == names


def test_no_manifest_is_left_out() -> None:
    for file in (DEPLOY / "kubernetes").rglob("kustomization.yaml"):
        wanted = yaml.safe_load(file.read_text())
        named = {each for each in wanted.get("resources", []) if each.endswith(".yaml")}
        named |= {each["path"] for each in wanted.get("patches", []) if "path" in each}
        there = {each.name for each in file.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert named == there
