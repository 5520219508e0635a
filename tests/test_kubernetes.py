"""The manifests of launch/kubernetes/ against Kubernetes' schema, and against the programs that they start."""

import copy
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from mpnet_ds.ranks.stop_requests import EXIT_REQUEUE
from tests.runs import ROOT, command

FOLDER = ROOT / "launch" / "kubernetes"
DOCUMENTS = list(yaml.safe_load_all((FOLDER / "job.yaml").read_text(encoding="utf-8")))
DEFINITIONS = json.loads((ROOT / "tests" / "fixtures" / "kubernetes-1.31.json").read_text())["definitions"]
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def problems(value, schema: dict, path: str = "") -> list[str]:
    """What in ``value`` does not agree with a schema; it knows those keywords of JSON Schema that the definitions have."""
    if "$ref" in schema:
        return problems(value, DEFINITIONS[schema["$ref"].rsplit("/", 1)[1]], path)
    if "oneOf" in schema:
        return min((problems(value, each, path) for each in schema["oneOf"]), key=len)
    kinds = schema["type"] if isinstance(schema.get("type"), list) else [schema.get("type", "object")]
    if not any(isinstance(value, TYPES[kind]) and (kind == "boolean") == isinstance(value, bool) for kind in kinds):
        return [f"{path}: {value!r} is none of {kinds}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path}: {value!r} is none of {schema['enum']}"]
    found = []
    if isinstance(value, list):
        for number, each in enumerate(value):
            found += problems(each, schema["items"], f"{path}[{number}]")
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{path}: no {name}" for name in schema.get("required", []) if name not in value]
        for name, each in value.items():
            if name in known or isinstance(others, dict):
                found += problems(each, known.get(name, others), f"{path}.{name}")
            elif not others:
                found.append(f"{path}: {name} is unknown")
    return found


def schema_of(document: dict) -> dict:
    group = "batch" if document["apiVersion"] == "batch/v1" else "core"
    return {"$ref": f"#/definitions/io.k8s.api.{group}.v1.{document['kind']}"}


def of_kind(kind: str) -> dict:
    return {document["metadata"]["name"]: document for document in DOCUMENTS if document["kind"] == kind}


JOB = of_kind("Job")["mpnet"]["spec"]
POD = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]
VARIABLES = {entry["name"]: entry.get("value") for entry in CONTAINER["env"]}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: f"{document['kind']}-{document['metadata']['name']}")
def test_manifests_are_valid(document):
    assert problems(document, schema_of(document)) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "completion"), 2),
        (("spec", "completions"), "2"),
        (("spec", "podFailurePolicy", "rules"), [{"onPodConditions": []}]),
        (("spec", "template", "spec", "terminationGracePeriodSeconds"), True),
        (("spec", "template", "spec", "volumes"), [{"emptyDir": {}}]),
    ],
)
def test_the_schema_finds_what_is_wrong(place, value):
    job = copy.deepcopy(of_kind("Job")["mpnet"])
    section = job
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = value
    assert problems(job, schema_of(job))


def test_each_machine_is_one_pod_that_finds_the_first():
    assert JOB["completionMode"] == "Indexed"
    assert JOB["completions"] == JOB["parallelism"] == int(VARIABLES["NODES"])
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == int(VARIABLES["GPUS"])
    service = of_kind("Service")[POD["subdomain"]]["spec"]
    assert VARIABLES["MASTER_ADDR"] == f"mpnet-0.{POD['subdomain']}"  # JOB-INDEX.SERVICE
    assert service["clusterIP"] == "None"
    assert service["selector"].items() <= JOB["template"]["metadata"]["labels"].items()


def test_exit_codes_mean_to_the_job_what_they_mean_to_the_programs():
    assert POD["restartPolicy"] == "Never"  # else podFailurePolicy is refused
    actions = {code: rule["action"] for rule in JOB["podFailurePolicy"]["rules"] if "onExitCodes" in rule
               for code in rule["onExitCodes"]["values"]}  # fmt: skip
    assert actions == {EXIT_REQUEUE: "Ignore", 2: "FailJob"}
    assert {rule["onExitCodes"]["containerName"] for rule in JOB["podFailurePolicy"]["rules"] if "onExitCodes" in rule} == {
        "train"
    }
    assert CONTAINER["name"] == "train"
    assert JOB["backoffLimit"] % JOB["completions"] == 0


def test_the_command_and_its_variables_exist():
    program = CONTAINER["command"][1]
    assert set(VARIABLES) - {"OMP_NUM_THREADS"} <= set(
        re.findall(r"^(\w+)=\$\{\1:-", (ROOT / program).read_text(), re.MULTILINE)
    )
    flags = {word for word in CONTAINER["args"] if word.startswith("--")}
    assert flags <= set(re.findall(r"--\w+", command(sys.executable, "launch/pretrain.py", "--help").stdout))
    paths = dict(zip(CONTAINER["args"][::2], CONTAINER["args"][1::2], strict=True))
    assert (ROOT / paths["--deepspeed_config"]).is_file()
    mounts = [mount["mountPath"] for mount in CONTAINER["volumeMounts"]]
    assert all(any(paths[flag].startswith(mount + "/") for mount in mounts) for flag in ("--data", "--output_dir"))
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in POD["volumes"] if "persistentVolumeClaim" in volume}
    assert claims == set(of_kind("PersistentVolumeClaim"))


def test_the_image_holds_what_the_job_starts():
    lines = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in shlex.split(line)[1:-1]]
    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert {"launch", "ds_configs", "mpnet_ds"} <= {Path(path).name for path in copied}
    assert next(line for line in lines if line.startswith("USER")).split()[1] in next(
        line for line in lines if "useradd" in line
    )
