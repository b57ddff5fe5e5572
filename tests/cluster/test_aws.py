"""The AWS files against Ray's schema and scheduler and botocore's model; nothing here asks a network."""

import copy
from pathlib import Path
from string import Template

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
FILLED_IN = {
    "RDMLDG_REGION": "us-east-1",
    "RDMLDG_REGISTRY": "1.dkr.ecr.us-east-1.amazonaws.com",
    "RDMLDG_SUBNET": "subnet-1",
    "RDMLDG_SECURITY_GROUP": "sg-1",
}


@pytest.fixture(scope="module")
def config():
    # What `ray up` calls first; there is no public way: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/autoscaler/_private/util.py#L242
    from ray.autoscaler._private.util import prepare_config

    # As envsubst does with the names that the file's head lists; any other stays.
    text = Template((CLUSTER / "aws.yaml").read_text()).safe_substitute(FILLED_IN)
    return prepare_config(yaml.safe_load(text))


def test_ray_accepts_the_config(config):
    from ray.autoscaler._private.util import validate_config

    validate_config(config)
    broken = copy.deepcopy(config)
    broken["available_node_types"]["cpu"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(broken)


def test_ec2_accepts_every_node(config):
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("ec2")
    instance_types = model.shape_for("InstanceType").enum
    for name, node_type in config["available_node_types"].items():
        node = dict(node_type["node_config"])
        # The one key that is Ray's own; it picks a subnet of these for each launch.
        [node["SubnetId"]] = node.pop("SubnetIds")
        request = node | {"MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(request, model.operation_model("RunInstances").input_shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert node["InstanceType"] in instance_types


def test_nothing_is_open_to_the_world(config):
    assert config["provider"]["use_internal_ips"] is True
    for node_type in config["available_node_types"].values():
        # Ray would make a group with port 22 open to the world for a node type without one.
        assert node_type["node_config"]["SecurityGroupIds"] == ["sg-1"]
        assert node_type["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
        assert "Name" in node_type["node_config"]["IamInstanceProfile"]
    [start] = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert any(path.endswith("/.ray/auth_token") for path in config["file_mounts"])
    assert "AKIA" not in str(config) and "aws_credentials" not in config["provider"]


def test_nothing_waits_or_trains_where_it_costs_for_nothing(config):
    node_types = config["available_node_types"]
    assert node_types["head"]["resources"] == {"CPU": 0}
    assert all(node_type.get("min_workers", 0) == 0 for node_type in node_types.values())
    assert {name for name, t in node_types.items() if "InstanceMarketOptions" in t["node_config"]} == {
        "cpu",
        "gpu-spot",
    }


@pytest.mark.parametrize(
    ("demand", "failed", "launched"),
    [
        ({"GPU": 1, "CPU": 4}, {}, "gpu-spot"),
        ({"GPU": 1, "CPU": 4}, {"gpu-spot": 0.0}, "gpu-on-demand"),
        ({"CPU": 1}, {}, "cpu"),
    ],
)
def test_the_autoscaler_takes_spot_then_on_demand_and_no_gpu_for_data(config, demand, failed, launched):
    from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    [start] = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert start.startswith("RAY_enable_autoscaler_v2=1 "), "version 1 has neither priority nor fallback"
    parsed = AutoscalingConfig(config, skip_content_hash=True)
    demands = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand)] * 4)
    reply = ResourceDemandScheduler(AutoscalerEventLogger(None)).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=parsed.get_node_type_configs(),
            max_num_nodes=config["max_workers"],
            resource_requests=demands,
            recoverable_resource_availabilities=failed,
        )
    )
    counts = {r.instance_type: r.count for r in reply.to_launch if r.instance_type != "head"}
    assert counts == {launched: 1}


def test_the_stack_opens_no_port_and_hands_out_no_more_than_is_used():
    text = (CLUSTER / "aws-stack.yaml").read_text()
    assert "<<" not in text and "&" not in text, "CloudFormation reads no YAML aliases"
    resources = yaml.safe_load(text)["Resources"]
    assert "SecurityGroupIngress" not in resources["SecurityGroup"]["Properties"]
    [rule] = [r["Properties"] for r in resources.values() if r["Type"] == "AWS::EC2::SecurityGroupIngress"]
    assert rule["SourceSecurityGroupId"] == rule["GroupId"] and "CidrIp" not in rule
    profiles = [r["Properties"]["InstanceProfileName"] for r in resources.values() if "Profile" in r["Type"]]
    assert sorted(profiles) == ["rdmldg-head", "rdmldg-worker"]
    [policy] = resources["HeadRole"]["Properties"]["Policies"]
    passed = [s for s in policy["PolicyDocument"]["Statement"] if s["Action"] == "iam:PassRole"]
    assert passed[0]["Resource"] == {"Fn::GetAtt": ["WorkerRole", "Arn"]}
