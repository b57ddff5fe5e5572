"""The Kubernetes manifests against KubeRay's own schemas, where these lie beside the repository."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "cluster/kuberay"
SCHEMAS = ROOT.parent / "shared/kuberay"


def manifest(name):
    return yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())


def strict(schema):
    """A CRD's schema as the API server means it: unknown keys are errors, defaults are filled in."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") is True:
        return {"type": ["integer", "string"]}
    if schema.get("type") not in ("object", "array") and "properties" not in schema:
        return {key: value for key, value in schema.items() if key in ("type", "enum", "pattern", "minimum")}
    made = {"type": schema.get("type", "object")}
    if "items" in schema:
        made["items"] = strict(schema["items"])
    properties = schema.get("properties", {})
    if properties:
        made["properties"] = {name: strict(value) for name, value in properties.items()}
        made["required"] = [n for n in schema.get("required", []) if "default" not in properties.get(n, {})]
        made["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    return made


@pytest.fixture(scope="module", params=["raycluster", "rayjob"])
def validator(request):
    jsonschema = pytest.importorskip("jsonschema")
    file = SCHEMAS / f"crd_{request.param}s.yaml"
    if not file.is_file():
        pytest.skip(f"no schemas of KubeRay in {SCHEMAS}")
    crd = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    [version] = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return request.param, jsonschema.Draft202012Validator(schema)


def test_kuberay_accepts_the_manifest(validator):
    name, checker = validator
    found = manifest(name)
    assert [f"{list(e.absolute_path)}: {e.message}" for e in checker.iter_errors(found)] == []
    found["spec"]["authOption"] = {"mode": "token"}
    assert [error.message for error in checker.iter_errors(found)]


def test_a_job_has_the_cluster_of_the_other_file():
    assert manifest("rayjob")["spec"]["rayClusterSpec"] == manifest("raycluster")["spec"]


def pods(spec):
    yield "head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def test_every_pod_is_probed_confined_and_behind_the_policy():
    label = {"app.kubernetes.io/part-of": "rdmldg"}
    policy = manifest("networkpolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == label and policy["policyTypes"] == ["Ingress"]
    assert all(rule["from"] for rule in policy["ingress"]), "an empty list would let everyone in"
    job = manifest("rayjob")["spec"]
    submitter = job["submitterPodTemplate"]
    for name, pod in [*pods(job["rayClusterSpec"]), ("submitter", submitter)]:
        assert pod["metadata"]["labels"] == label, name
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, name
        [container] = pod["spec"]["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["image"] == "${RDMLDG_IMAGE}"
        if name != "submitter":
            assert container["readinessProbe"]["httpGet"] and container["livenessProbe"]["httpGet"]
            assert container["resources"]["requests"] == container["resources"]["limits"], name
            assert container["envFrom"] == [{"secretRef": {"name": "rdmldg-storage"}}]
            assert "env" not in container, "secrets come from the Secret alone"


def test_the_cluster_asks_for_a_token_starts_empty_and_trains_nothing_on_its_head():
    spec = manifest("raycluster")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP" and not spec["headGroupSpec"]["enableIngress"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [(g["groupName"], g["minReplicas"], g["replicas"]) for g in spec["workerGroupSpecs"]] == [
        ("cpu", 0, 0),
        ("gpu", 0, 0),
    ]
    assert manifest("rayjob")["spec"]["entrypoint"].endswith("--storage ${RDMLDG_STORAGE}")
