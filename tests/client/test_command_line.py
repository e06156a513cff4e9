"""`clickbert rank`: what it prints, and its exit status."""

import json
import os
import signal
import subprocess
import sys

import pytest

from clickbert import Ranker
from clickbert.__main__ import main
from tests.client.fakes import held


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "documents.txt"
    path.write_bytes("\ufeffa bar\n\n  \r\na cheap cafe 中文\r\nline\u2028separator\nred \x1b[31m alert\nlast".encode())
    return path


TEXTS = ["a bar", "a cheap cafe 中文", "line\u2028separator", "red \x1b[31m alert", "last"]


def run(url, *more, stdin=None):
    command = [sys.executable, "-m", "clickbert", "rank", "--url", url, "--query", "coffee", *map(str, more)]
    return subprocess.run(command, capture_output=True, input=stdin, timeout=30, check=False)


def test_the_table(url, documents, capsys):
    assert main(["rank", "--url", url, "--query", "coffee", "--documents", str(documents), "--top-k", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    with Ranker(url) as ranker:
        expected = ranker.rank("coffee", TEXTS, 4)
    assert lines[0].split() == ["rank", "score", "text"]
    assert [line.split()[:2] for line in lines[1:]] == [
        [str(rank), f"{item.score:.4f}"] for rank, item in enumerate(expected, start=1)
    ]
    assert not any(char in "".join(lines) for char in "\x1b\u2028"), "a document must not steer the terminal"


def test_long_texts_are_shortened_in_the_table_only(url, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("coffee " * 100)
    arguments = ["rank", "--url", url, "--query", "tea", "--documents", str(tmp_path / "long.txt")]
    main(arguments)
    assert max(map(len, capsys.readouterr().out.splitlines())) < 100
    main([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out)["results"][0]["text"] == ("coffee " * 100).strip()


def test_json_from_a_file_and_from_stdin(url, documents):
    from_file = run(url, "--documents", documents, "--json")
    from_stdin = run(url, "--documents", "-", "--json", stdin=documents.read_bytes())
    assert from_file.returncode == 0 and from_file.stdout == from_stdin.stdout
    answer = json.loads(from_file.stdout)
    assert (answer["query"], answer["model"], answer["url"]) == ("coffee", "clickbert_onnx", url)
    with Ranker(url) as ranker:
        expected = ranker.rank("coffee", TEXTS)
    assert answer["results"] == [
        {"rank": rank, "index": item.index, "score": item.score, "text": item.text}
        for rank, item in enumerate(expected, start=1)
    ]


def sent(server):
    """What the model was asked, as token ids."""
    requests = [request.inputs["input_ids"].tolist() for request in server.requests if "input_ids" in request.inputs]
    server.requests.clear()
    return requests


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (["--mask"], "write to email, customer 12"),
        (["--mask-pattern", "customer [0-9]+"], "write to mia@example.com, masked"),
        (["--mask", "--mask-pattern", "custom", "--mask-pattern", "[0-9]+"], "write to email, maskeder masked"),
    ],
)
def test_what_is_masked_the_model_does_not_see(server, url, tmp_path, capsys, options, seen):
    text = "write to mia@example.com, customer 12"
    (tmp_path / "documents.txt").write_text(text)
    arguments = ["rank", "--url", url, "--query", "coffee", "--documents", str(tmp_path / "documents.txt"), "--json"]
    assert main([*arguments, *options]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["text"] == text, "the caller's own"
    masked = sent(server)
    (tmp_path / "documents.txt").write_text(seen)
    main(arguments)
    assert masked == sent(server)
    assert len(masked) == 1


def test_a_pattern_that_is_none_is_an_error(url, documents):
    done = run(url, "--documents", documents, "--mask-pattern", "(")
    assert done.returncode == 1
    assert done.stderr.decode().startswith("clickbert: patterns[0] is '(', which is no regular expression")


def test_output_is_utf8_in_any_locale(url, documents, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run(url, "--documents", documents)
    assert done.returncode == 0 and "中文" in done.stdout.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["rank"],
        ["rank", "--query", "tea"],
        ["rank", "--query", "tea", "--documents", "no/such/file"],
        ["rank", "--query", "tea", "--documents", "-", "--top-k", "0"],
        ["rank", "--query", "tea", "--documents", "-", "--timeout", "nan"],
        ["rank", "--query", "tea", "--docum", "-"],
        ["ranks"],
    ],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err


def test_failures_are_status_1_with_one_line(url, documents, tmp_path, capsys):
    (tmp_path / "latin1.txt").write_bytes(b"fine\ncaf\xe9\n")
    (tmp_path / "empty.txt").write_bytes(b"\n\n")
    base = ["rank", "--query", "tea"]
    for arguments, message in [
        (["--url", url, "--documents", str(tmp_path / "latin1.txt")], "latin1.txt, line 2: not UTF-8"),
        (["--url", url, "--documents", str(tmp_path / "empty.txt")], "documents is empty"),
        (["--url", "http://localhost:8000", "--documents", str(documents)], "localhost:8001"),
        (["--url", "127.0.0.1:1", "--documents", str(documents)], "check that the server runs"),
        (["--url", url, "--documents", str(documents), "--model", "other"], "other at"),
    ]:
        assert main(base + arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and message in captured.err
        assert captured.err.startswith("clickbert: ") and captured.err.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error(url, documents):
    command = f"{sys.executable} -m clickbert rank --url {url} --query tea --documents {documents} | true"
    command += "; exit ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_is_status_130_at_once(server, url, tmp_path):
    (tmp_path / "many.txt").write_text("a bar\n" * 500)
    # A shell without job control starts what it runs in the background with Ctrl-C ignored, and that is inherited. (Not
    # by preexec_fn: with it Python forks, and gRPC, whose server runs in this process, may abort the child.)
    command = ["env", "--default-signal=INT", sys.executable, "-m", "clickbert", "rank", "--url", url, "--query", "tea"]
    command += ["--documents", str(tmp_path / "many.txt"), "--timeout", "60"]
    with held(server) as requests:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ)
        requests.wait_until_reached()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)  # before anybody answers, and before its own time is over
    assert (process.returncode, stderr) == (130, b"")
