"""The examples for clusters are what their schedulers read: a RayJob of KubeRay's API ray.io/v1, and a SLURM file."""

import shlex
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from test_cli import COMMANDS

EXAMPLES = Path(__file__).parents[1] / "examples" / "scale"
TEXT, WHOLE = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def strict(required: str, **properties: Any) -> dict[str, Any]:
    """An object that may have these properties alone, and must have those named."""
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def many(entry: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": entry, "minItems": 1}


# What the example uses of ray.io/v1 and of Kubernetes' pods, with their types; any other name is a mistake.
QUANTITIES = {"type": "object", "propertyNames": {"enum": ["cpu", "memory", "nvidia.com/gpu"]}, "additionalProperties": {"type": "string"}}
CONTAINER = strict(
    "name image",
    name=TEXT,
    image=TEXT,
    env=many(strict("name", name=TEXT, value=TEXT)),
    resources=strict("", requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=many(strict("name mountPath", name=TEXT, mountPath=TEXT)),
)
CLAIM = strict("name", name=TEXT, persistentVolumeClaim=strict("claimName", claimName=TEXT))
POD = strict("spec", spec=strict("containers", containers=many(CONTAINER), volumes=many(CLAIM)))
WORKERS = strict(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName=TEXT,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER = strict(
    "headGroupSpec",
    enableInTreeAutoscaling={"type": "boolean"},
    headGroupSpec=strict("rayStartParams template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=many(WORKERS),
)
RAY_JOB = strict(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=strict("name", name=TEXT),
    spec=strict(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        backoffLimit=WHOLE,
        shutdownAfterJobFinishes={"type": "boolean"},
        rayClusterSpec=CLUSTER,
    ),
)


@pytest.fixture
def job() -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())


def test_the_ray_job_is_one_and_its_command_parses(job: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(RAY_JOB)
    Draft202012Validator(RAY_JOB).validate(job)
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["w2w", "adapters", "train"]
    asked = COMMANDS["adapters train"].make_context("w2w", words[3:]).params
    assert asked["ray"] == "auto"
    assert asked["workers"] == job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]


def test_the_schema_refuses_what_kuberay_would(job: dict[str, Any]) -> None:
    for path, value in ((("spec", "rayClusterSpec", "workers"), []), (("spec", "backoffLimit"), "3"), (("kind",), "Job")):
        wrong = deepcopy(job)
        place = wrong
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        with pytest.raises(ValidationError):
            Draft202012Validator(RAY_JOB).validate(wrong)
