"""The files of cluster/: no key is misspelt, what belongs together agrees, and Ray does as told."""

import copy
import json
import math
import re
import shlex
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
from packaging.requirements import Requirement
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
    CloudResourceMonitor,
)
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.core.generated.autoscaler_pb2 import ResourceRequest, ResourceRequestByCount
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent
from ray.runtime_env.runtime_env import RuntimeEnv, RuntimeEnvConfig
from ray.scripts.scripts import start

from mmray.config.command_line import parse
from mmray.config.presets import PRESETS
from mmray.config.validation import validate

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHER, KUBERAY = ("aws.yaml", "gcp.yaml", "local.yaml"), "kuberay-rayjob.yaml"
SCALED = ("aws.yaml", "gcp.yaml", KUBERAY)
TOKEN, REQUIREMENTS = "~/.ray/auth_token", "~/mmray/requirements.txt"
GPU_REQUIREMENTS, DRAIN = "~/mmray/requirements-gpu.txt", "~/mmray/drain_on_notice.py"


def load(name: str) -> Any:
    return json.loads(as_json(name))  # what anchors share becomes copies


@cache
def as_json(name: str) -> str:
    return json.dumps(yaml.safe_load((CLUSTER / name).read_text()))


def requirements() -> dict[str, Requirement]:
    """Those of requirements.txt that hold in the containers, by name."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    image = {"sys_platform": "linux", "platform_machine": "x86_64"}
    return {r.name: r for r in listed if r.marker is None or r.marker.evaluate(image)}


# -- what a file may contain ----------------------------------------------------------------------


def check(name: str, document: Any) -> None:
    """Raise where the file is not what its readers expect; no key is unknown to them."""
    if name == KUBERAY:
        check_rayjob(document)
    else:
        check_launcher(document)


def check_launcher(config: dict[str, Any]) -> None:
    """The parts that Ray's own checks leave open, and those."""
    kind = config["provider"]["type"]
    assert config["provider"].keys() <= provider_keys(kind)
    for node_type in config.get("available_node_types", {}).values():
        assert node_type["resources"].keys() <= {"CPU", "GPU", "memory"}
        {"aws": check_aws, "gcp": check_gcp}[kind](node_type["node_config"])
    # Paths that others read: Ray looks for the token there, and the set-up for the packages.
    paths = {TOKEN, REQUIREMENTS, GPU_REQUIREMENTS} | ({DRAIN} if kind != "local" else set())
    assert config["file_mounts"].keys() == paths
    validate_config(prepare_config(copy.deepcopy(config)))


@cache
def provider_keys(kind: str) -> set[str]:
    """The keys of `provider` that occur in Ray's code for it."""
    private = Path(ray.autoscaler.__file__).parent / "_private"
    shared = [private / f"{name}.py" for name in ("commands", "updater", "util")]
    code = "".join(path.read_text() for path in [*shared, *(private / kind).glob("*.py")])
    return set(re.findall(r'provider(?:_config)?(?:"\])?(?:\[|\.get\()\s*"(\w+)"', code))


@cache
def run_instances() -> Any:
    model = ServiceModel(Loader().load_service_model("ec2", "service-2"))
    return model.operation_model("RunInstances").input_shape


def check_aws(node_config: dict[str, Any]) -> None:
    counted = {**node_config, "MinCount": 1, "MaxCount": 1}  # as Ray does, as it does with subnets
    counted["SubnetId"] = counted.pop("SubnetIds")[0]
    report = ParamValidator().validate(counted, run_instances())
    assert not report.has_errors(), report.generate_report()


@cache
def schema(name: str) -> Any:
    content = json.loads((ROOT / "tests" / "schemas" / name).read_text())
    jsonschema.Draft7Validator.check_schema(content)
    return jsonschema.Draft7Validator(content)


def check_gcp(node_config: dict[str, Any]) -> None:
    schema("gcp-instance.json").validate(node_config)
    for labelled in (node_config, *(disk["initializeParams"] for disk in node_config["disks"])):
        assert labelled["labels"].keys() == {"project", "owner"}  # any others would do for Google


def check_rayjob(job: dict[str, Any]) -> None:
    """The resource, its pods, and what it holds for Ray: options, and an environment."""
    schema("rayjob.json").validate(job)
    cluster = job["spec"]["rayClusterSpec"]
    options = {name.removeprefix("--") for option in start.params for name in option.opts}
    for group in groups(cluster):
        schema("pod-template.json").validate(group["template"])
        assert group["rayStartParams"].keys() <= options
        pod = group["template"]["spec"]
        assert pod["nodeSelector"].keys() == {"eks.amazonaws.com/capacityType"}
        for amounts in pod["containers"][0]["resources"].values():
            assert amounts.keys() <= {"cpu", "memory", "nvidia.com/gpu"}
    for amounts in cluster["autoscalerOptions"]["resources"].values():
        assert amounts.keys() <= {"cpu", "memory"}
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert environment.keys() <= RuntimeEnv.known_fields
    assert environment["config"].keys() <= RuntimeEnvConfig.known_fields
    RuntimeEnv(**environment)


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def key_paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each key of a document is: keys and places in lists, from the top."""
    if isinstance(node, dict):
        below = [key_paths(value, (*path, key)) for key, value in node.items()]
        return [*((*path, key) for key in node), *(found for paths in below for found in paths)]
    if isinstance(node, list):
        return [f for place, value in enumerate(node) for f in key_paths(value, (*path, place))]
    return []


def misspelt(document: Any, path: tuple[Any, ...]) -> Any:
    document = copy.deepcopy(document)
    owner = document
    for step in path[:-1]:
        owner = owner[step]
    owner[f"{path[-1]}x"] = owner.pop(path[-1])
    return document


# Names of types of workers are free; the tests of the autoscaler, below, know them.
FREE = {
    ("available_node_types", f"{unit}-{market}")
    for unit in ("cpu", "gpu")
    for market in ("spot", "on-demand")
}
KEYS = [
    pytest.param(name, path, id=f"{name}:{'.'.join(map(str, path))}")
    for name in (*LAUNCHER, KUBERAY)
    for path in key_paths(load(name))
    if path not in FREE
]


@pytest.mark.parametrize("name", [*LAUNCHER, KUBERAY])
def test_a_file_is_what_its_readers_expect(name):
    check(name, load(name))


@pytest.mark.parametrize(("name", "path"), KEYS)
def test_a_misspelt_key_is_refused(name, path):
    with pytest.raises(Exception):  # noqa: B017, PT011 # by whichever of the checks
        check(name, misspelt(load(name), path))


@pytest.mark.parametrize("key", ["working_dir", "pip", "config", "setup_timeout_seconds"])
def test_a_misspelt_key_of_the_environment_is_refused(key):
    job = load(KUBERAY)
    text = job["spec"]["runtimeEnvYAML"]
    assert text.count(f"{key}:") == 1
    job["spec"]["runtimeEnvYAML"] = text.replace(f"{key}:", f"{key}x:")
    with pytest.raises((AssertionError, KeyError)):
        check(KUBERAY, job)


# -- what belongs together ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LAUNCHER, KUBERAY])
def test_images_have_the_pinned_ray(name):
    version = str(requirements()["ray"].specifier).removeprefix("==")
    images = re.findall(r"rayproject/\S+", (CLUSTER / name).read_text())
    tags = {image.strip('"}') for image in images}
    assert tags
    assert tags <= {f"rayproject/ray:{version}-py311-{unit}" for unit in ("cpu", "gpu")}
    if name == KUBERAY:
        assert load(name)["spec"]["rayClusterSpec"]["rayVersion"] == version


def test_gpus_have_an_image_with_cuda():
    for name in ("aws.yaml", "gcp.yaml"):
        for kind in load(name)["available_node_types"].values():
            image = kind.get("docker", {}).get("worker_image", "-cpu")
            assert image.endswith("-gpu" if kind["resources"]["GPU"] else "-cpu")
    for group in groups(load(KUBERAY)["spec"]["rayClusterSpec"]):
        (container,) = group["template"]["spec"]["containers"]
        gpus = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith("-gpu" if gpus else "-cpu")


def test_machines_on_demand_are_like_those_of_spot():
    alike = {}
    for name in ("aws.yaml", "gcp.yaml"):
        kinds = load(name)["available_node_types"]
        alike |= {(name, kind): kinds[kind]["resources"] for kind in kinds}
    for group in load(KUBERAY)["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        alike[KUBERAY, group["groupName"]] = group["template"]["spec"]["containers"]
    for name, kind in alike:
        if kind.endswith("-spot"):
            assert alike[name, kind] == alike[name, kind.replace("-spot", "-on-demand")]


def test_packages_are_those_of_requirements():
    for name in LAUNCHER:
        config = load(name)
        assert config["file_mounts"][REQUIREMENTS] == "requirements.txt"
        assert config["file_mounts"][GPU_REQUIREMENTS] == "requirements-gpu.txt"
        first, second = config["setup_commands"][-2:]
        assert first == f'test -n "$MMRAY_INSTALLED" || pip install -r {REQUIREMENTS}'
        assert second.startswith('if test -z "$MMRAY_INSTALLED" && ')
        assert second.endswith(
            f"pip uninstall --yes faiss-cpu && pip install -r {GPU_REQUIREMENTS}; fi"
        )
    wanted = [f"{r.name}{r.specifier}" for r in requirements().values() if r.name != "ray"]
    assert yaml.safe_load(load(KUBERAY)["spec"]["runtimeEnvYAML"])["pip"] == wanted


@pytest.mark.parametrize("name", LAUNCHER)
def test_no_node_starts_without_a_token_and_the_dashboard_is_on_loopback(name):
    config = load(name)
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"][TOKEN] == TOKEN
    started = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    head, worker = (shlex.split(line) for line in started if "ray start" in line)
    assert {"--head", "--dashboard-host=127.0.0.1"} <= set(head)
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker
    options = {name for option in start.params for name in option.opts}
    given = {word.partition("=")[0] for word in head + worker if word.startswith("--")}
    assert given <= options


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_workers_of_a_cloud_drain_themselves_on_a_notice(name):
    config = load(name)
    source = config["file_mounts"][DRAIN]
    assert (ROOT / source).is_file()
    assert not [line for line in config["head_start_ray_commands"] if "drain" in line]
    command = config["worker_start_ray_commands"][-1]
    assert f"python {DRAIN} {config['provider']['type']} --address=$RAY_HEAD_IP:6379" in command
    assert command.endswith("&")


@pytest.mark.parametrize("name", LAUNCHER)
def test_an_image_with_the_packages_installs_nothing(name, tmp_path):
    (tmp_path / "pip").write_text("#!/bin/sh\necho installed\n")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    config = load(name)
    commands = [*config["setup_commands"][1:], *config.get("head_setup_commands", [])]
    for command in commands:
        for variable, output in (({}, True), ({"MMRAY_INSTALLED": "gpu"}, False)):
            environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **variable}
            ran = subprocess.run(
                ["bash", "-c", command], env=environment, capture_output=True, text=True, check=True
            )
            assert bool(ran.stdout) == output


def test_on_kubernetes_only_pods_reach_the_dashboard_and_it_asks_for_the_token():
    cluster = load(KUBERAY)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    head = cluster["headGroupSpec"]
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)


def test_disks_are_in_the_zone_of_the_machines():
    config = load("gcp.yaml")
    for kind in config["available_node_types"].values():
        for disk in kind["node_config"]["disks"]:
            zone = disk["initializeParams"]["diskType"].split("/")[1]
            assert zone == config["provider"]["availability_zone"]


def test_the_job_can_be_parsed_and_counts_on_what_its_groups_bring():
    spec = load(KUBERAY)["spec"]
    python, script, *arguments = shlex.split(spec["entrypoint"])
    assert (python, (ROOT / script).is_file()) == ("python", True)
    config = parse(PRESETS, arguments, "")
    validate(config)
    assert config.preset == "retrieval"
    brought: Counter[str] = Counter()
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for resource in ("cpu", "nvidia.com/gpu"):
            brought[resource] += group["maxReplicas"] * int(limits.get(resource, 0))
    assert config.num_cpus <= brought["cpu"]
    assert config.num_gpus <= brought["nvidia.com/gpu"]


def test_the_job_of_the_readme_can_be_parsed():
    text = (CLUSTER / "README.md").read_text()
    (command,) = re.findall(r"python jobs/retrieval\.py (.*?)\n +ray job stop", text, re.S)
    validate(parse(PRESETS, shlex.split(command.replace("\\\n", " ")), ""))


# -- what the comments say of Ray's autoscaler ----------------------------------------------------


def launched(name: str, need: dict[str, float], count: int, monitor: Any = None) -> dict[str, int]:
    """The machines that Ray starts, from none, for so many tasks or actors with this need."""
    document = load(name)
    document.get("auth", {}).pop("ssh_private_key", None)  # read for a hash; here is none
    if name == KUBERAY:
        resource = {"metadata": {"name": "mmray", "namespace": "default"}}
        resource["spec"] = document["spec"]["rayClusterSpec"]
        document = _derive_autoscaling_config_from_ray_cr(resource)
    config = AutoscalingConfig(document, skip_content_hash=True)
    monitor = monitor or CloudResourceMonitor()
    request = ResourceRequestByCount(request=ResourceRequest(resources_bundle=need), count=count)
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=[request],
            cloud_resource_availabilities=monitor.get_resource_availabilities(),
            recoverable_resource_availabilities=monitor.get_recoverable_resource_availabilities(),
        )
    )
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def told(status: int, kind: str) -> CloudResourceMonitor:
    """The autoscaler's memory of which types could not be had, after one event."""
    monitor = CloudResourceMonitor()
    monitor.notify([InstanceUpdateEvent(instance_type=kind, new_instance_status=status)])
    return monitor


GPU, DECODING = {"GPU": 1, "CPU": 1}, {"CPU": 1, "memory": 2**29}


@pytest.mark.parametrize("name", SCALED)
def test_nothing_is_started_for_nothing(name):
    assert launched(name, {"CPU": 1}, 0) == {}


@pytest.mark.parametrize("name", SCALED)
def test_spot_machines_come_first_up_to_their_number(name):
    assert launched(name, GPU, 3) == {"gpu-spot": 3}
    assert launched(name, GPU, 6) == {"gpu-spot": 4, "gpu-on-demand": 2}
    assert launched(name, DECODING, 8) == {"cpu-spot": 1}


@pytest.mark.parametrize("name", SCALED)
def test_a_type_that_did_not_start_in_time_is_passed_over(name):
    monitor = told(Instance.ALLOCATION_TIMEOUT, "gpu-spot")
    assert launched(name, GPU, 2, monitor) == {"gpu-on-demand": 2}


@pytest.mark.parametrize("name", SCALED)
def test_a_refusal_changes_nothing(name):
    monitor = told(Instance.ALLOCATION_FAILED, "gpu-spot")
    assert launched(name, GPU, 2, monitor) == {"gpu-spot": 2}


# -- what the README counts -----------------------------------------------------------------------


def sums() -> list[tuple[str, str, str]]:
    """Each `expression = value` of cluster/README.md, and the rest of its line: what it cites."""
    text = (CLUSTER / "README.md").read_text()
    return re.findall(r"`([^`=]+) = ([\d,.]+)`(.*)", text)


@pytest.mark.parametrize(("expression", "value", "source"), sums())
def test_the_sums_of_the_readme_hold(expression, value, source):
    assert re.fullmatch(r"[\d., */+()^-]+", expression)
    exact = eval(expression.replace(",", "").replace("^", "**"))  # of digits and signs alone
    digits = len(value.partition(".")[2])
    assert math.isclose(round(exact, digits), float(value.replace(",", "")))
    for section, rate in re.findall(r"\"([^\"]+)\": ([\d.,]+)", source):
        results = sorted((ROOT / "docs" / "results").glob("*.md"))
        parts = re.split(r"(?m)^#+ ", "\n".join(file.read_text() for file in results))
        (content,) = [part for part in parts if part.startswith(f"{section}\n")]
        assert re.search(rf"(?<![\d.]){re.escape(rate)}(?![\d.])", content), (section, rate)
        assert rate.replace(",", "") in expression.replace(",", "")


# -- the images -----------------------------------------------------------------------------------


def test_the_images_have_the_pinned_versions_and_what_the_set_up_would_install():
    text = (CLUSTER / "Dockerfile").read_text()
    stages = dict(re.findall(r"(?ms)^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", text))
    bases = dict(re.findall(r"(?m)^FROM (\S+) AS (\w+)$", text))
    version = str(requirements()["ray"].specifier).removeprefix("==")
    assert {target: base for base, target in bases.items() if target != "mlflow"} == {
        unit: f"rayproject/ray:{version}-py311-{unit}" for unit in ("cpu", "gpu")
    }
    for unit in ("cpu", "gpu"):
        assert f"ENV MMRAY_INSTALLED={unit}\n" in stages[unit]
        assert "-r /tmp/requirements.txt" in stages[unit]
    assert "download.pytorch.org/whl/cpu" in stages["cpu"]
    assert re.search(
        r"uninstall --yes faiss-cpu .*\n.* -r /tmp/requirements-gpu.txt", stages["gpu"]
    )
    for name in ("aws.yaml", "gcp.yaml"):  # what the head calls its cloud with
        assert load(name)["head_setup_commands"][-1].split()[-1] in stages["cpu"]
    assert f'"mlflow[auth]{requirements()["mlflow"].specifier}"' in stages["mlflow"]
    assert re.search(r"(?m)^USER 10001$", stages["mlflow"])
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().split("\n")
    for copied in re.findall(r"(?m)^COPY (.*) /tmp/", text):
        assert {f"!{file}" for file in copied.split()} <= {*ignored}
