"""What `python -m deploy stack` refuses before it starts anything, and what it hands to Prometheus."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from deploy.stack.run import PORTS, main, write_prometheus
from release.lock import locked

FREE = [f"--port={name}=0" for name in PORTS]


def test_a_taken_port_is_named_with_the_option_for_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main([*FREE, f"--port=prometheus={port}", f"--folder={tmp_path / 'stack'}"]) == 1
    said = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 is taken" in said and "another --port prometheus=" in said
    assert not (tmp_path / "stack").exists()


def test_two_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path):
        assert main([*FREE, f"--folder={tmp_path}"]) == 1
    assert f"another one runs in {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["grafana=3000", "prometheus", "prometheus=http", "prometheus=65536"])
def test_a_port_is_a_parts_name_and_a_number(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--port={wrong}"])
    assert "is not NAME=NUMBER" in capsys.readouterr().err


def test_prometheus_takes_its_configuration_with_the_targets(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip(
            "promtool is not installed (apt-get install prometheus), so Prometheus's configuration is not checked"
        )
    file = write_prometheus(tmp_path, PORTS)
    done = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "rules found" in done.stdout, done.stdout + done.stderr
    # That promtool reads the targets, too:
    (tmp_path / "targets" / "triton.yaml").write_text("targets: none\n", encoding="utf-8")
    done = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "targets/triton.yaml" in done.stdout + done.stderr
