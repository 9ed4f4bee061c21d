"""The fields of custom resources that `deploy/kubernetes` uses, as JSON Schema; any other fails.

Written down from the documentation and the types of KEDA 2.18, RabbitMQ's cluster operator 2.x and
CloudNativePG 1.2x. What is of Kubernetes itself, such as a pod, is checked by Kubernetes' schemas.
"""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"}
OF_KUBERNETES: Schema = {"type": "object"}


def fields(required: str = "", **properties: Schema) -> Schema:
    """An object with these fields and no other; ``required`` names some, between blanks."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def many(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


METADATA = fields(
    "name",
    name=TEXT,
    namespace=TEXT,
    labels={"type": "object", "additionalProperties": TEXT},
    annotations={"type": "object", "additionalProperties": TEXT},
)
RESOURCES = fields(
    requests={"type": "object", "additionalProperties": QUANTITY},
    limits={"type": "object", "additionalProperties": QUANTITY},
)

METRICS_API_TRIGGER = fields(
    "type metadata",
    type=one_of("metrics-api"),
    name=TEXT,
    # Values are text, whatever they mean.
    metadata=fields(
        "url valueLocation targetValue",
        url={"type": "string", "pattern": "^https?://"},
        format=one_of("json", "xml", "yaml", "prometheus"),
        valueLocation=TEXT,
        targetValue=QUANTITY,
        activationTargetValue=QUANTITY,
        unsafeSsl=one_of("true", "false"),
        aggregateFromKubeServiceEndpoints=one_of("true", "false"),
        aggregationType=one_of("average", "sum", "max", "min"),
    ),
)

SCALED_JOB = fields(
    "jobTargetRef triggers",
    jobTargetRef=OF_KUBERNETES,
    pollingInterval=COUNT,
    successfulJobsHistoryLimit=COUNT,
    failedJobsHistoryLimit=COUNT,
    envSourceContainerName=TEXT,
    minReplicaCount=COUNT,
    maxReplicaCount=COUNT,
    rollout=fields(
        strategy=one_of("default", "gradual"), propagationPolicy=one_of("background", "foreground")
    ),
    scalingStrategy=fields(
        strategy=one_of("default", "custom", "accurate", "eager"),
        customScalingQueueLengthDeduction=COUNT,
        customScalingRunningJobPercentage=TEXT,
        pendingPodConditions=many(TEXT),
        multipleScalersCalculation=one_of("max", "min", "avg", "sum"),
    ),
    triggers=many(METRICS_API_TRIGGER),
)

RABBITMQ_CLUSTER = fields(
    "",
    replicas={"enum": [1, 3, 5]},  # the ones that are tested
    image=TEXT,
    persistence=fields(storageClassName=TEXT, storage=QUANTITY),
    resources=RESOURCES,
    rabbitmq=fields(
        additionalPlugins=many({"type": "string", "pattern": r"^\w+$"}),
        additionalConfig={"type": "string", "maxLength": 2000},
        advancedConfig=TEXT,
        envConfig=TEXT,
    ),
    override=fields(
        statefulSet=fields("spec", spec=fields("template", template=OF_KUBERNETES)),
    ),
)

CNPG_CLUSTER = fields(
    "instances storage",
    instances={"type": "integer", "minimum": 1},
    imageName=TEXT,
    bootstrap=fields(
        initdb=fields("database owner", database=TEXT, owner=TEXT, secret=fields("name", name=TEXT))
    ),
    storage=fields("size", size=QUANTITY, storageClass=TEXT),
    resources=RESOURCES,
    managed=fields(
        services=fields(
            disabledDefaultServices=many(one_of("r", "ro")),
            additional=many(
                fields(
                    "selectorType serviceTemplate",
                    selectorType=one_of("rw", "r", "ro"),
                    serviceTemplate=OF_KUBERNETES,
                )
            ),
        )
    ),
)

SPECS = {
    ("keda.sh/v1alpha1", "ScaledJob"): SCALED_JOB,
    ("rabbitmq.com/v1beta1", "RabbitmqCluster"): RABBITMQ_CLUSTER,
    ("postgresql.cnpg.io/v1", "Cluster"): CNPG_CLUSTER,
}


def is_custom(resource: dict[str, Any]) -> bool:
    return (resource["apiVersion"], resource["kind"]) in SPECS


def validate(resource: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError: a field is unknown, missing, or of a wrong value."""
    spec = SPECS[resource["apiVersion"], resource["kind"]]
    whole = fields("metadata spec", apiVersion=TEXT, kind=TEXT, metadata=METADATA, spec=spec)
    Draft202012Validator(whole).validate(resource)


def kubernetes_parts(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """What a custom resource has of Kubernetes itself, as resources that its schemas know."""
    match resource:
        case {"kind": "ScaledJob", "spec": {"jobTargetRef": job}}:
            return [{"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "spec": job}]
        case {"kind": "RabbitmqCluster", "spec": {"override": {"statefulSet": {"spec": spec}}}}:
            template = spec["template"]
            return [
                {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": template}
            ]
        case {"kind": "Cluster", "spec": {"managed": {"services": {"additional": services}}}}:
            return [
                {"apiVersion": "v1", "kind": "Service", **each["serviceTemplate"]}
                for each in services
            ]
    return []
