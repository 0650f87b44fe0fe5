"""The files of cluster/ open no port to the world, encrypt disks, and pin what they start."""

import copy
import re
import subprocess

import boto3
import pytest
from moto import mock_aws
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.command_runner import SSHCommandRunner
from ray.autoscaler._private.util import prepare_config

from tests.pipeline.test_cluster_files import CLUSTER, KUBERAY, LAUNCHER, groups, load

CLOUDS = ("aws.yaml", "gcp.yaml")
MACHINES = {
    name: [kind["node_config"] for kind in load(name)["available_node_types"].values()]
    for name in CLOUDS
}


@pytest.mark.parametrize("machine", MACHINES["aws.yaml"])
def test_a_machine_of_aws_is_closed(machine):
    assert machine["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 2,
    }
    assert all(disk["Ebs"]["Encrypted"] for disk in machine["BlockDeviceMappings"])
    # Without the names Ray makes a group that lets the world in on port 22.
    assert machine["SecurityGroupIds"] == ["sg-your-group"]
    assert all(name.startswith("subnet-your-") for name in machine["SubnetIds"])
    assert machine["ImageId"].startswith("ami-")  # no parameter, whose value changes
    tagged = {
        spec["ResourceType"]: {tag["Key"] for tag in spec["Tags"]}
        for spec in machine["TagSpecifications"]
    }
    assert tagged == {kind: {"project", "owner"} for kind in ("instance", "volume")}


@pytest.mark.parametrize("machine", MACHINES["gcp.yaml"])
def test_a_machine_of_google_is_closed(machine):
    (interface,) = machine["networkInterfaces"]
    assert interface.keys() == {"subnetwork"}  # no accessConfigs: no public address
    shielded = machine["shieldedInstanceConfig"]
    assert shielded["enableVtpm"]
    assert shielded["enableIntegrityMonitoring"]
    assert shielded["enableSecureBoot"] == (not machine["machineType"].startswith("g2-"))
    items = {item["key"]: item["value"] for item in machine["metadata"]["items"]}
    assert items["block-project-ssh-keys"] == "true"
    assert items["serial-port-enable"] == "FALSE"
    (disk,) = machine["disks"]
    assert "/images/family/" not in disk["initializeParams"]["sourceImage"]
    for labels in (machine["labels"], disk["initializeParams"]["labels"]):
        assert labels.keys() == {"project", "owner"}
    assert machine["tags"]["items"] == ["mmray"]


@pytest.mark.parametrize("name", CLOUDS)
def test_machines_of_a_cloud_have_no_public_address_and_ssh_goes_by_the_clouds_proxy(name):
    config = load(name)
    assert config["provider"]["use_internal_ips"] is True
    assert "use_external_head_ip" not in config["provider"]
    # The id, in the place where Ray's own runner and ssh put it.
    runner = SSHCommandRunner(
        log_prefix="",
        node_id="i-0abc",
        provider=None,
        auth_config={"ssh_private_key": "key", **config["auth"]},
        cluster_name="mmray",
        process_runner=subprocess,
        use_internal_ip=True,
    )
    assert runner._get_ssh_target() == "i-0abc"
    (command,) = [o for o in runner.ssh_options.to_ssh_options_list(timeout=5) if "Proxy" in o]
    proxy = command.removeprefix("ProxyCommand=").replace("%h", "i-0abc").replace("%p", "22")
    assert "%" not in proxy
    place = config["provider"]["region" if name == "aws.yaml" else "availability_zone"]
    expected = {
        "aws.yaml": f"aws ssm start-session --region {place} --target i-0abc"
        " --document-name AWS-StartSSHSession --parameters portNumber=22",
        "gcp.yaml": "gcloud compute start-iap-tunnel i-0abc 22 --listen-on-stdin"
        f" --project {config['provider'].get('project_id')} --zone {place}",
    }
    assert proxy == expected[name]


@pytest.mark.parametrize("name", LAUNCHER)
def test_nothing_is_called_latest(name):
    text = (CLUSTER / name).read_text()
    values = re.sub(r"#.*", "", text)
    assert "latest" not in values
    assert ":main" not in values


def test_pods_of_ray_have_few_rights_and_the_head_alone_speaks_to_kubernetes():
    head, *workers = groups(load(KUBERAY)["spec"]["rayClusterSpec"])
    for group in (head, *workers):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod.get("automountServiceAccountToken", True) == (group is head)
        secrets = {v["name"]: v["valueFrom"]["secretKeyRef"]["name"] for v in container["env"]}
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        assert secrets == dict.fromkeys(names, "mlflow-client")


@pytest.fixture
def account(monkeypatch, tmp_path):
    """aws.yaml filled in with what a double of EC2 has, and that double's client."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray keeps the key that it makes
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        for cached in vars(aws_config).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()
        config = load("aws.yaml")
        region = config["provider"]["region"]
        ec2, iam = boto3.client("ec2", region), boto3.client("iam", region)
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnets = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{place}.0/24", AvailabilityZone=zone)
            for place, zone in enumerate(config["provider"]["availability_zone"].split(","))
        ]
        group = ec2.create_security_group(GroupName="mmray", Description="mmray", VpcId=vpc)
        for profile in ("mmray-head", "mmray-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        for kind in config["available_node_types"].values():
            kind["node_config"] |= {
                "SubnetIds": [subnet["Subnet"]["SubnetId"] for subnet in subnets],
                "SecurityGroupIds": [group["GroupId"]],
                "ImageId": ec2.describe_images()["Images"][0]["ImageId"],
            }
        yield config, ec2


def test_ray_starts_machines_that_are_closed(account):
    config, ec2 = account
    before = ec2.describe_security_groups()["SecurityGroups"]
    config = aws_config.bootstrap_aws(prepare_config(copy.deepcopy(config)))
    assert ec2.describe_security_groups()["SecurityGroups"] == before
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name in ("head", "cpu-spot"):
        provider.create_node(
            config["available_node_types"][name]["node_config"], {"ray-node-name": name}, 1
        )
    found = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    assert len(found) == 2
    groups = config["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
    for machine in found:
        assert "PublicIpAddress" not in machine
        assert [group["GroupId"] for group in machine["SecurityGroups"]] == groups
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        tags = {tag["Key"] for tag in machine["Tags"]}
        assert {"project", "owner", "ray-cluster-name"} <= tags
    for volume in ec2.describe_volumes()["Volumes"]:
        assert volume["Encrypted"]
        assert {tag["Key"] for tag in volume["Tags"]} == {"project", "owner"}
