"""The Kubernetes manifests against KubeRay's own schemas, where these lie beside the repository."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "cluster/kuberay"
SCHEMAS = ROOT.parent / "shared/kuberay"


def manifest(name):
    return yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())


# What the operator checks, and its schemas do not.
WORDS = {
    "serviceType": ["ClusterIP", "NodePort", "LoadBalancer"],
    "submissionMode": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"],
}
LIMITS = ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength")


def strict(schema, name=""):
    """A CRD's schema as the API server means it: unknown keys are errors, defaults are filled in."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") is True:
        # A quantity, or a number or name of a port.
        return {"type": ["integer", "string"], **{k: v for k, v in schema.items() if k == "pattern"}}
    if schema.get("type") not in ("object", "array") and "properties" not in schema:
        words = {"enum": WORDS[name]} if name in WORDS else {}
        return {key: value for key, value in schema.items() if key in LIMITS} | words
    made = {"type": schema.get("type", "object")}
    if "items" in schema:
        made["items"] = strict(schema["items"])
    properties = schema.get("properties", {})
    if properties:
        made["properties"] = {name: strict(value, name) for name, value in properties.items()}
        made["required"] = [n for n in schema.get("required", []) if "default" not in properties.get(n, {})]
        made["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    return made


def pruned(value):
    """A document without keys that have no value, which the API server drops."""
    if isinstance(value, dict):
        return {key: pruned(part) for key, part in value.items() if part is not None}
    return [pruned(part) for part in value] if isinstance(value, list) else value


def group_mistakes(document):
    """What no schema says of groups of workers."""
    spec = document["spec"]
    groups = spec.get("rayClusterSpec", spec).get("workerGroupSpecs", [])
    names = [group.get("groupName") for group in groups]
    yield from (f"two groups '{name}'" for name in sorted(set(names)) if names.count(name) > 1)
    for group in groups:
        counts = [group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)]
        if counts != sorted(counts):
            yield f"{group['groupName']}: minReplicas > maxReplicas"


@pytest.fixture(scope="module", params=["raycluster", "rayjob"])
def mistakes(request):
    """A manifest's name, and what tells the mistakes in a document of its kind."""
    jsonschema = pytest.importorskip("jsonschema")
    file = SCHEMAS / f"crd_{request.param}s.yaml"
    if not file.is_file():
        pytest.skip(f"no schemas of KubeRay in {SCHEMAS}")
    crd = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    [version] = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"] |= {
        "apiVersion": {"const": f"{crd['spec']['group']}/v1"},
        "kind": {"const": crd["spec"]["names"]["kind"]},
        "metadata": {"type": "object"},
    }
    schema["required"] = ["apiVersion", "kind", "spec"]
    checker = jsonschema.Draft202012Validator(schema)

    def mistakes(document):
        document = pruned(document)
        found = [f"{list(e.absolute_path)}: {e.message}" for e in checker.iter_errors(document)]
        return found or list(group_mistakes(document))

    return request.param, mistakes


def cluster_of(document):
    return document["spec"].get("rayClusterSpec", document["spec"])


def resources_of(document):
    [container] = cluster_of(document)["headGroupSpec"]["template"]["spec"]["containers"]
    return container["resources"]


def groups_of(document):
    return cluster_of(document)["workerGroupSpecs"]


def test_kuberay_accepts_the_manifest(mistakes):
    name, mistakes = mistakes
    assert mistakes(manifest(name)) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["metadata"].update(labels=None),
        lambda found: found["spec"].update(suspend=None),
        lambda found: cluster_of(found)["headGroupSpec"]["template"].update(metadata=None),
        lambda found: cluster_of(found)["headGroupSpec"]["template"].update(metadata={"annotations": None}),
        lambda found: resources_of(found).update(limits={"cpu": 2, "memory": "1.5Gi", "nvidia.com/gpu": "1"}),
        lambda found: resources_of(found).update(limits={"cpu": "500m", "memory": "1e9"}),
        lambda found: groups_of(found)[0].update(minReplicas=3, maxReplicas=3),
    ],
)
def test_kuberay_accepts_what_the_api_server_prunes_and_every_form_of_quantity(mistakes, change):
    name, mistakes = mistakes
    found = manifest(name)
    change(found)
    assert mistakes(found) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["spec"].update(authOption={"mode": "token"}),
        lambda found: found.update(apiVersion="ray.io/v1alpha1"),
        lambda found: found.update(apiVersion="v1"),
        lambda found: found.pop("apiVersion"),
        lambda found: found.update(kind="RayService"),
        lambda found: found.update(kind=found["kind"].lower()),
        lambda found: found.update(spec=None),
        lambda found: resources_of(found).update(limits={"cpu": "lots"}),
        lambda found: resources_of(found).update(requests={"memory": "8 GB"}),
        lambda found: resources_of(found).update(limits={"memory": "8GB"}),
        lambda found: resources_of(found).update(limits={"cpu": ""}),
        lambda found: resources_of(found).update(limits={"cpu": True}),
        lambda found: groups_of(found)[0].update(minReplicas=5, maxReplicas=4),
        lambda found: groups_of(found)[0].update(groupName=groups_of(found)[1]["groupName"]),
        lambda found: groups_of(found)[0].pop("groupName"),
        lambda found: cluster_of(found)["headGroupSpec"].update(serviceType="Nodeport"),
        lambda found: cluster_of(found)["headGroupSpec"].update(serviceType="clusterIP"),
    ],
)
def test_kuberays_schemas_refuse_a_mistake(mistakes, change):
    name, mistakes = mistakes
    found = manifest(name)
    change(found)
    assert mistakes(found)


@pytest.mark.parametrize(
    ("mode", "right"), [("K8sJobMode", True), ("HTTPMode", True), ("K8SJobMode", False), ("job", False)]
)
def test_a_job_is_submitted_in_one_of_the_operators_ways(mistakes, mode, right):
    name, mistakes = mistakes
    found = manifest(name)
    found["spec"]["submissionMode"] = mode
    assert (mistakes(found) == []) == (right and name == "rayjob")


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
