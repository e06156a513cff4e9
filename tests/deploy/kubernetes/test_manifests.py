"""The manifests hang together, and with the code: labels, ports, flags, times, users, images, names of metrics."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.fetch.run import main as fetch
from deploy.gateway import run as gateway
from deploy.gateway.files import POLICY
from deploy.kubernetes.rules import RESOURCE, RULES, resource
from serving.__main__ import main as serving
from serving.addresses import Addresses
from serving.backends.packed_cpu.figures import LOADS
from serving.server import DRAIN, Server
from tests.deploy.dockerfile import STAGES
from tests.deploy.kubernetes.rendering import (
    FOLDER,
    VARIANTS,
    Resource,
    Variant,
    build,
    containers,
    deployment,
    kserve_pod,
    labels,
    named,
    of_kind,
    pod,
    render,
    resources,
)
from tests.deploy.tools import ROOT

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
CPU, GPU, KSERVE = Variant("cpu"), Variant("gpu"), Variant("kserve")
SHOULD_BE = {"clickbert-server": {8001, 8002}, "clickbert-gateway": {8443, 9902}}


def server(variant: Variant) -> Resource:
    (found,) = pod(deployment(variant, "server"))["containers"]
    return found


@each_variant
def test_selectors_find_the_pods_that_they_mean(variant: Variant) -> None:
    pods = [labels(each) for each in of_kind(variant, "Deployment")]
    selectors = [
        each["spec"]["selector"]["matchLabels"] for each in of_kind(variant, "Deployment", "PodDisruptionBudget")
    ]
    selectors += [each["spec"]["selector"] for each in of_kind(variant, "Service")]
    for each in of_kind(variant, "Deployment"):
        for spread in pod(each)["topologySpreadConstraints"]:
            assert spread["labelSelector"]["matchLabels"] == labels(each)
    assert len(selectors) == 7
    for selector in selectors:
        assert sum(selector.items() <= each.items() for each in pods) == 1, selector


@each_variant
def test_services_and_probes_name_ports_that_are_there(variant: Variant) -> None:
    for each in of_kind(variant, "Deployment"):
        (container,) = pod(each)["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert set(ports.values()) == SHOULD_BE[each["metadata"]["name"]]
        asked = [container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
        for probe in asked:
            (way,) = probe.keys() & {"grpc", "exec", "tcpSocket", "httpGet"}
            assert way == "exec" or probe[way]["port"] in {*ports, *ports.values()}
        for service in of_kind(variant, "Service"):
            if service["spec"]["selector"].items() <= labels(each).items():
                assert all(ports[port["targetPort"]] == port["port"] for port in service["spec"]["ports"])


@each_variant
def test_every_port_is_open_to_those_who_need_it_and_nothing_else(variant: Variant) -> None:
    policies = of_kind(variant, "NetworkPolicy")
    assert named(variant, "NetworkPolicy", "deny-all")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    for each in of_kind(variant, "Deployment"):
        mine = [
            policy["spec"] for policy in policies if policy["spec"]["podSelector"].get("matchLabels") == labels(each)
        ]
        rules = [rule for spec in mine for rule in spec.get("ingress", [])]
        assert all(rule["from"] for rule in rules), "from anywhere"
        assert {port["port"] for rule in rules for port in rule["ports"]} == SHOULD_BE[each["metadata"]["name"]]
    (out,) = named(variant, "NetworkPolicy", "clickbert-gateway")["spec"]["egress"]
    assert out["to"] == [{"podSelector": {"matchLabels": labels(deployment(variant, "server"))}}]
    assert [port["port"] for port in out["ports"]] == [8001]
    assert any(policy["metadata"]["name"] == "clickbert-fetch" for policy in policies) == (
        "volume" not in variant.components
    )


@each_variant
def test_pods_are_what_the_restricted_profile_admits(variant: Variant) -> None:
    (namespace,) = of_kind(variant, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for each, container in containers(variant):
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]} and not security["allowPrivilegeEscalation"]
        assert security["readOnlyRootFilesystem"] and pod(each)["securityContext"]["runAsNonRoot"]
        assert pod(each)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod(each)["automountServiceAccountToken"] is False
        for volume in pod(each)["volumes"]:
            assert volume.keys() & {"emptyDir", "secret", "persistentVolumeClaim"}, volume


def test_kserves_pod_is_such_a_one() -> None:
    spec = kserve_pod()["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert all("emptyDir" in volume for volume in spec["volumes"])
    (container,) = spec["containers"]
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]} and not security["allowPrivilegeEscalation"]
    assert security["readOnlyRootFilesystem"] and security["runAsNonRoot"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert str(security["runAsUser"]) == STAGES["cpu"].words("USER")[-1]


@each_variant
def test_the_user_is_the_images_and_no_image_is_whatever_is_newest(variant: Variant) -> None:
    users = {STAGES[name].words("USER")[-1] for name in ("cpu", "gpu", "gateway")}
    for each, container in containers(variant):
        assert users == {str(pod(each)["securityContext"]["runAsUser"])}
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]+", container["image"]), container["image"]


@each_variant
def test_a_pod_has_the_time_that_its_drain_takes(variant: Variant) -> None:
    """`Server.stop` waits ten seconds longer than Triton may take; the gateway's drain five longer than its calls."""
    for part, drain in (("server", DRAIN + 10), ("gateway", gateway.DRAIN + 5)):
        each = deployment(variant, part)
        (container,) = pod(each)["containers"]
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pause + drain < pod(each)["terminationGracePeriodSeconds"]
        assert each["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_server_waits_longer_than_the_gateway_needs_to_see_that_it_goes() -> None:
    checks = POLICY.read_text(encoding="utf-8").partition("health_checks:")[2].partition("outlier_detection:")[0]
    (timeout,), (interval,), (count,) = (
        re.findall(rf"^    [- ] {name}: (\d+)s?$", checks, re.MULTILINE)
        for name in ("timeout", "interval", "unhealthy_threshold")
    )
    pause = server(CPU)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert (int(timeout) + int(interval)) * int(count) < pause


@each_variant
def test_a_slow_start_is_not_ended_by_its_own_probes(variant: Variant) -> None:
    ready_within = inspect.signature(Server.wait_until_ready).parameters["timeout"].default

    def patience(probe: Resource) -> int:
        return int(probe["periodSeconds"]) * int(probe["failureThreshold"])

    assert patience(server(variant)["startupProbe"]) > ready_within
    # A server that is started anew within its container, for new certificates, drains before.
    assert patience(server(variant)["livenessProbe"]) > ready_within + DRAIN + 10
    deadline = deployment(variant, "server")["spec"]["progressDeadlineSeconds"]
    assert patience(server(variant)["startupProbe"]) < deadline
    if variant.overlay == "gpu":  # as long as the image's own health check gives the plans, and more
        (minutes,) = re.findall(r"--start-period=(\d+)m", STAGES["gpu"].words("HEALTHCHECK")[-1])
        assert patience(server(variant)["startupProbe"]) > int(minutes) * 60


@pytest.mark.parametrize("variant", [CPU, GPU, KSERVE], ids=str)
def test_the_commands_take_the_flags_that_they_are_given(variant: Variant, tmp_path: Path) -> None:
    """A flag that they do not know ends them with SystemExit: each gets so far as to miss what is not here."""
    if variant == KSERVE:
        (container,) = named(variant, "ServingRuntime", "clickbert")["spec"]["containers"]
    else:
        container = server(variant)
        (proxy,) = pod(deployment(variant, "gateway"))["containers"]
        assert proxy["command"] == ["python3", "-m", "deploy", "gateway"]
        assert gateway.main([arg.replace("/secrets", str(tmp_path / "none")) for arg in proxy["args"]]) == 1
        (init,) = pod(deployment(variant, "server"))["initContainers"]
        assert init["command"] == ["python3", "-m", "deploy", "fetch"]
        source, destination = init["args"]
        assert source == "$(MODELS_SOURCE)" and fetch([str(tmp_path / "none"), str(tmp_path / destination[1:])]) == 1
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert f"/volume/{mounts['models']['subPath']}" == destination
        assert mounts["models"]["mountPath"] == "/models", "where the image's own entry point looks"
    arguments = [arg.replace("/mnt/models", str(tmp_path / "none")) for arg in container.get("args", [])]
    assert serving([*arguments, f"--repository={tmp_path / 'none'}"]) == 1
    words = container["readinessProbe"]["exec"]["command"]
    assert words[:3] == ["python3", "-m", "serving"]
    assert serving([*words[3:], f"--grpc-port={Addresses.free().grpc_port}"]) == 1


@each_variant
def test_the_gateway_and_the_probe_ask_for_the_same_model(variant: Variant) -> None:
    (proxy,) = pod(deployment(variant, "gateway"))["containers"]
    (model,) = (arg.partition("=")[2] for arg in proxy["args"] if arg.startswith("--model="))
    assert server(variant)["readinessProbe"]["exec"]["command"][-2:] == ["--model", model]
    config = (ROOT / "model_repository" / model / "config.pbtxt").read_text(encoding="utf-8")
    assert ('backend: "tensorrt"' in config) == (variant.overlay == "gpu")
    (headless,) = (each for each in of_kind(variant, "Service") if each["metadata"]["name"] == "clickbert-headless")
    assert headless["spec"]["clusterIP"] == "None" and "--triton=clickbert-headless:8001" in proxy["args"]


def test_another_source_is_a_rollout() -> None:
    more = "configMapGenerator:\n- {{ name: clickbert-models, behavior: merge, literals: [source=s3://other/{}] }}\n"
    seen = set()
    for number in (1, 2):
        made = build(FOLDER / "overlays" / "cpu", more=more.format(number))
        (config,) = (each for each in yaml.safe_load_all(made) if each["kind"] == "ConfigMap")
        assert config["data"]["source"] == f"s3://other/{number}"
        (each,) = re.findall(r"key: source\n +name: (clickbert-models-\w+)", made)
        assert each == config["metadata"]["name"]
        seen.add(each)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("variant", "kind"),
    [
        (CPU, "HorizontalPodAutoscaler"),
        (Variant("cpu", ("monitoring",), scaler="keda"), "ScaledObject"),
        (Variant("gpu", ("keda-gpu", "monitoring")), "ScaledObject"),
        (GPU, None),
    ],
    ids=str,
)
def test_one_thing_at_most_says_how_many_replicas_there_are(variant: Variant, kind: str | None) -> None:
    scalers = of_kind(variant, "HorizontalPodAutoscaler", "ScaledObject")
    assert [each["kind"] for each in scalers] == ([kind] if kind else [])
    assert ("replicas" in deployment(variant, "server")["spec"]) == (kind is None)
    for scaler in scalers:
        assert scaler["spec"]["scaleTargetRef"]["name"] == "clickbert-server"


def test_two_scalers_are_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(Variant("cpu", ("keda",)))  # the overlay has `hpa`
    assert "Unable to remove nonexistent key: replicas" in caught.value.stderr


@pytest.mark.parametrize("component", ["keda", "keda-gpu"])
def test_the_scaler_asks_for_a_figure_that_there_is(component: str) -> None:
    scaler = yaml.safe_load((FOLDER / "components" / component / "scaler.yaml").read_text(encoding="utf-8"))
    query = scaler["spec"]["triggers"][0]["metadata"]["query"]
    (figure,) = re.findall(r"(\w+)\{job=\"triton\",namespace=\"clickbert\"\}", query)
    assert figure in (*LOADS, "nv_inference_pending_request_count")


def test_what_needs_a_definition_that_a_bare_cluster_lacks_is_left_out_unless_it_is_asked_for() -> None:
    plain = {"v1", "apps/v1", "policy/v1", "networking.k8s.io/v1", "autoscaling/v2"}
    for variant in (CPU, GPU):
        assert {each["apiVersion"] for each in resources(variant)} <= plain


def test_the_jobs_are_called_as_the_rules_call_them() -> None:
    variant = Variant("cpu", ("monitoring", "volume"))
    jobs = {}
    for monitor in of_kind(variant, "ServiceMonitor"):
        (endpoint,) = monitor["spec"]["endpoints"]
        wanted = monitor["spec"]["selector"]["matchLabels"]
        found = [each for each in of_kind(variant, "Service") if wanted.items() <= each["metadata"]["labels"].items()]
        (ports,) = (
            [port["port"] for port in each["spec"]["ports"] if port["name"] == endpoint["port"]] for each in found
        )
        jobs[endpoint["relabelings"][0]["replacement"]] = (*ports, endpoint["path"])
    assert jobs == {"triton": (8002, "/metrics"), "gateway": (9902, "/stats/prometheus")}


def test_the_rules_are_those_that_were_tested() -> None:
    rules = RULES.read_text(encoding="utf-8")
    assert RESOURCE.read_text(encoding="utf-8") == resource(rules), "run `python -m deploy.kubernetes.rules`"
    assert yaml.safe_load(resource(rules))["spec"] == yaml.safe_load(rules)
