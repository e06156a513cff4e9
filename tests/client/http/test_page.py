"""The examples of docs/http.md, run as they stand."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from clickbert.__main__ import main
from clickbert.http.settings import Settings
from tests.client.http.running import in_a_process

PAGE = (Path(__file__).parents[3] / "docs/http.md").read_text(encoding="utf-8").partition("\n## ")[0]
SERVE = re.compile(r"^    (clickbert serve .*)$", re.MULTILINE)
CURL = re.compile(r"^curl .*$", re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_are_answered(url, tmp_path):
    (command,) = SERVE.findall(PAGE)
    command = command.replace("localhost:8001", url).replace("8080", "0")
    examples = CURL.findall(PAGE)
    assert len(examples) == 4
    with in_a_process(tmp_path / "serve.log", *command.split()) as running:
        for example in examples:
            asked = example.replace("http://", "").replace("localhost:8080", running.address)
            command = f"{asked} --silent --fail-with-body"
            done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
            assert done.returncode == 0, (example, done.stdout)
            answer = json.loads(done.stdout)
            assert isinstance(answer, list) or answer["results"]


def test_every_variable_is_named(monkeypatch):
    read = []

    class Environment(dict):
        def get(self, name, default=None):
            read.append(name)
            return default

    Settings.from_environment(Environment())
    assert set(read) == set(re.findall(r"CLICKBERT_\w+", PAGE))


def test_every_option_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    options = set(re.findall(r"(?<!\S)--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert {"--url", "--max-bytes", "--cors-origin"} <= options <= set(re.findall(r"--[a-z-]+", PAGE))
