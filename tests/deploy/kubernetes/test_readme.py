"""What the README has an operator add to his kustomization does what it says."""

from __future__ import annotations

import re

import yaml

from tests.deploy.kubernetes.rendering import FOLDER, VARIANTS, build, deployment, of_kind, pod


def test_the_patch_for_other_models_reaches_both_who_ask() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    (patches,) = re.findall(r"```yaml\n(patches:\n.*?)```", page, re.DOTALL)
    made = list(yaml.safe_load_all(build(FOLDER / "overlays" / "cpu", more=patches)))
    server, gateway = (
        each["spec"]["template"]["spec"]["containers"][0]
        for name in ("clickbert-server", "clickbert-gateway")
        for each in made
        if each["kind"] == "Deployment" and each["metadata"]["name"] == name
    )
    asked = server["readinessProbe"]["exec"]["command"]
    assert [word for word in asked if "clickbert" in word] == [
        "clickbert_tokenizer",
        "clickbert_onnx",
        "clickbert_onnx_int8",
    ]
    assert asked.count("--model") == 3
    assert [arg for arg in gateway["args"] if arg.startswith("--model")] == ["--model=clickbert_onnx_int8"]


def test_a_role_of_the_servers_account_is_not_the_gateways() -> None:
    for variant in VARIANTS:
        (account,) = of_kind(variant, "ServiceAccount")
        assert account["automountServiceAccountToken"] is False
        assert pod(deployment(variant, "server"))["serviceAccountName"] == account["metadata"]["name"]
        assert "serviceAccountName" not in pod(deployment(variant, "gateway"))
