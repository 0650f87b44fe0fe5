"""mlflow.yaml and redis.yaml: valid for Kubernetes, closed, and what they refer to exists."""

import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from tests.pipeline.test_cluster_files import CLUSTER, KUBERAY, key_paths, load, misspelt, schema

MANIFESTS = ("mlflow.yaml", "redis.yaml")


def documents(name: str) -> list[Any]:
    parsed = yaml.safe_load_all((CLUSTER / name).read_text())
    return json.loads(json.dumps(list(parsed)))


def pods(name: str) -> list[Any]:
    return [d["spec"]["template"] for d in documents(name) if "template" in d.get("spec", {})]


def one(name: str, kind: str, called: str) -> Any:
    (found,) = [d for d in documents(name) if (d["kind"], d["metadata"]["name"]) == (kind, called)]
    return found


def check(document: Any) -> None:
    schema("kubernetes.json").validate(document)
    if "template" in document.get("spec", {}):
        schema("pod-template.json").validate(document["spec"]["template"])


CASES = [
    pytest.param(document, path, id=f"{document['kind']}:{'.'.join(map(str, path))}")
    for name in MANIFESTS
    for document in documents(name)
    for path in key_paths(document)
    # Keys that anybody may choose: the tests below compare both sides of those that matter.
    if not {"labels", "matchLabels", "selector", "data", "requests", "limits"} & {*path[:-1]}
]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_what_kubernetes_expects(name):
    for document in documents(name):
        check(document)


@pytest.mark.parametrize(("document", "path"), CASES)
def test_a_misspelt_key_is_refused(document, path):
    with pytest.raises((jsonschema.ValidationError, KeyError)):
        check(misspelt(document, path))


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_few_rights_limits_and_probes(name):
    for template in pods(name):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            for amounts in container["resources"].values():
                assert amounts.keys() == {"cpu", "memory"}
            assert {"readinessProbe", "livenessProbe"} <= container.keys()
            assert not container["image"].endswith(":latest")
            assert ":" in container["image"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_a_manifest_refers_to_exists(name):
    labels = [pod["metadata"]["labels"] for pod in pods(name)]
    for document in documents(name):
        spec = document.get("spec", {})
        if document["kind"] in ("Deployment", "StatefulSet"):
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        if document["kind"] == "Service":
            assert spec["selector"] in labels
        if document["kind"] == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"] in labels
            assert spec["policyTypes"] == ["Ingress", "Egress"]
            for rule in spec.get("ingress", []):
                assert rule["from"]
    policies = [d for d in documents(name) if d["kind"] == "NetworkPolicy"]
    assert len(policies) == len(labels)
    for pod in pods(name):
        (container,) = pod["spec"]["containers"]
        claims = {
            claim["metadata"]["name"]
            for d in documents(name)
            for claim in d.get("spec", {}).get("volumeClaimTemplates", [])
        }
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])} | claims
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_no_password_is_in_a_manifest_and_the_comment_makes_those_that_are_asked_for():
    for name in MANIFESTS:
        assert not [d for d in documents(name) if d["kind"] == "Secret"]
        text = (CLUSTER / name).read_text()
        for pod in pods(name):
            for variable in pod["spec"]["containers"][0].get("env", []):
                secret = variable.get("valueFrom", {}).get("secretKeyRef")
                if secret:
                    assert f"create secret generic {secret['name']} " in text
                    assert f"--from-literal {secret['key']}=" in text


def test_mlflow_asks_for_passwords_and_keeps_runs_in_postgresql():
    (container,) = one("mlflow.yaml", "Deployment", "mlflow")["spec"]["template"]["spec"][
        "containers"
    ]
    assert {"--app-name=basic-auth", "--host=0.0.0.0"} <= {*container["args"]}
    env = {variable["name"]: variable for variable in container["env"]}
    database = env["MLFLOW_BACKEND_STORE_URI"]["value"]
    users = one("mlflow.yaml", "ConfigMap", "mlflow")["data"]["basic_auth.ini"]
    assert f"database_uri = {database}\n" in users
    service = one("mlflow.yaml", "Service", "mlflow-database")["metadata"]["name"]
    assert database == f"postgresql+psycopg://mlflow@{service}/mlflow"
    assert "password" not in users


def test_the_job_reaches_mlflow_by_a_name_that_it_allows():
    (allowed,) = [
        argument.partition("=")[2].split(",")
        for argument in pods("mlflow.yaml")[0]["spec"]["containers"][0]["args"]
        if argument.startswith("--allowed-hosts=")
    ]
    entrypoint = load(KUBERAY)["spec"]["entrypoint"].split()
    uri = entrypoint[entrypoint.index("--tracking-uri") + 1]
    assert uri.removeprefix("http://") in allowed


def test_a_cluster_that_stays_finds_redis_by_the_options_of_the_readme():
    text = (CLUSTER / "README.md").read_text()
    (block,) = re.findall(r"(?m)^    gcsFaultToleranceOptions:\n(?: {6,}.*\n)+", text)
    options = yaml.safe_load(block)
    job = load(KUBERAY)
    job["spec"]["rayClusterSpec"] |= options
    schema("rayjob.json").validate(job)
    job["spec"]["rayClusterSpec"]["gcsFaultToleranceOptions"]["redisAddres"] = "redis:6379"
    with pytest.raises(jsonschema.ValidationError):
        schema("rayjob.json").validate(job)
    redis = options["gcsFaultToleranceOptions"]
    service = one("redis.yaml", "Service", "redis")
    assert redis["redisAddress"] == f"redis.default.svc:{service['spec']['ports'][0]['port']}"
    (container,) = pods("redis.yaml")[0]["spec"]["containers"]
    assert redis["redisPassword"]["valueFrom"] == container["env"][0]["valueFrom"]
