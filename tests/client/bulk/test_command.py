"""`clickbert score` as a process, against a server over gRPC."""

import argparse
import fcntl
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from clickbert import Ranker
from clickbert.__main__ import main
from clickbert.commands import score as score_command
from clickbert.wire.protocol import DEFAULT_MODEL
from tests.client.fake_model import MODEL, FakeStatusError
from tests.client.fakes import FakeTriton, grpc_server, held
from tests.waiting import eventually

OPEN_ROWS = 16 * 256  # batches that may be open, and the pairs of each
SECRET = "xyzzy"


def command(url, *more):
    return [sys.executable, "-m", "clickbert", "score", "--url", url, *map(str, more)]


def score(url, *more, **options):
    return subprocess.run(command(url, *more), capture_output=True, timeout=120, check=False, **options)


def make_log(path: Path, rows: int) -> list[tuple[str, str]]:
    pairs = [(f"coffee {row // 20}", f"a {SECRET} bar {row}") for row in range(rows)]
    path.write_text("".join(f"{json.dumps({'query': query, 'document': text})}\n" for query, text in pairs))
    return pairs


def sent(server: FakeTriton) -> int:
    return sum(request.inputs["lengths"].size for request in server.requests if request.model == MODEL)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "in.jsonl"
    make_log(path, 700)
    return path


def test_a_file_of_every_kind(url, server, tmp_path, capsys):
    pairs = make_log(tmp_path / "in.jsonl", 300)
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write(f"no {SECRET}\n")
    assert main(["score", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--url", url]) == 3
    sizes = [request.inputs["lengths"].size for request in server.requests if request.model == MODEL]
    assert sorted(sizes) == [44, 64, 64, 64, 64], "requests are as large as the server takes"
    printed = capsys.readouterr()
    bad = tmp_path / "out.jsonl.bad.jsonl"
    assert printed.out == "" and SECRET not in printed.err
    assert f"300 rows scored to {tmp_path / 'out.jsonl'}" in printed.err
    assert f"1 bad rows are not in it: {bad}" in printed.err and json.loads(bad.read_text())["line"] == 301
    with Ranker(url) as ranker:
        expected = ranker.score_pairs(pairs)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [(row["query"], row["document"]) for row in found] == pairs
    assert [row["score"] for row in found] == expected


def test_options_reach_the_ranker(url, server, tmp_path):
    (tmp_path / "in.csv").write_text("q,d\ncoffee near me,write to mia@example.com\n")
    options = ["--query-column", "q", "--document-column", "d", "--mask", "--raw-scores", "--truncate", "document"]
    assert main(["score", str(tmp_path / "in.csv"), "--output", str(tmp_path / "o.csv"), "--url", url, *options]) == 0
    with Ranker(url) as ranker:
        (logit,) = ranker.score_pairs([("coffee near me", "write to email")], raw_scores=True)
    expected = f"q,d,score\ncoffee near me,write to mia@example.com,{logit!r}\n"
    assert (tmp_path / "o.csv").read_text() == expected


def test_pipes(url, log, tmp_path):
    main(["score", str(log), "--output", str(tmp_path / "out.jsonl"), "--url", url])
    expected = (tmp_path / "out.jsonl").read_bytes()
    done = score(url, "-", "--output", "-", input=log.read_bytes() + b"bad\n")
    assert (done.returncode, done.stdout) == (3, expected)
    assert b"bad row in line 701: not JSON" in done.stderr
    done = score(url, "-", "--output", tmp_path / "piped.jsonl.gz", input=log.read_bytes())
    assert done.returncode == 0 and gzip.decompress((tmp_path / "piped.jsonl.gz").read_bytes()) == expected


def test_usage(url, log, tmp_path, capsys):
    about_servers = [["--model", DEFAULT_MODEL], *([f"--{name}-file", "x"] for name in ("ca", "certificate", "key"))]
    for arguments in (
        [str(log)],
        [str(log), "--output", "o.jsonl", "--format", "xml"],
        [str(log), "--output", "o.jsonl", "--url", url, "--in-process", "here"],
        *([str(log), "--output", "o.jsonl", "--in-process", "here", *more] for more in about_servers),
        ["no/such/file.jsonl", "--output", str(tmp_path / "o.jsonl")],
    ):
        with pytest.raises(SystemExit) as caught:
            main(["score", *arguments])
        assert caught.value.code == 2
    capsys.readouterr()
    for arguments, message in [
        ([str(log), "--output", str(tmp_path / "o.csv")], "says csv: rows keep their format"),
        ([str(tmp_path), "--output", str(tmp_path / "o.csv")], "does not say its format"),
        ([str(log), "--output", str(tmp_path / "no/o.jsonl")], "cannot write"),
        ([str(log), "--output", str(tmp_path / "o.jsonl"), "--url", "127.0.0.1:1"], "check that the server runs"),
        ([str(log), "--output", str(tmp_path / "o.jsonl"), "--model", "other"], "other at"),
    ]:
        assert main(["score", "--url", url, *arguments]) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and message in printed.err and SECRET not in printed.err


def start(url, log, output, **options):
    return subprocess.Popen(command(url, log, "--output", output), stderr=subprocess.PIPE, text=True, **options)


def test_kills_at_random_moments(url, server, tmp_path):
    kill_again_and_again(url, server, tmp_path, rows=6000, most=2, within=(15, 50))


def kill_again_and_again(url, server, tmp_path, rows, most, within):
    """`kill -9` again and again: the output is that of a calm run, and what was noted is not computed again."""
    log, output, calm = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "calm.jsonl"
    make_log(log, rows)
    assert score(url, log, "--output", calm).returncode == 0
    chance, journal, kills = random.Random(7), tmp_path / "out.jsonl.journal", 0
    while True:
        server.begin_anew()
        noted = json.loads(journal.read_text())["done"]["scored"] if journal.exists() else 0
        killed = threading.Event()
        count, last = iter(range(10**6)), chance.randint(*within)

        process = start(url, log, output)

        def kill(request, process=process, count=count, last=last, killed=killed, is_last=kills == most):
            if next(count) == last and not is_last:
                process.kill()
                killed.set()

        server.before_infer = kill
        process.communicate(timeout=120)
        server.before_infer = lambda request: None
        if not killed.is_set():
            break
        kills += 1
        after = json.loads(journal.read_text())["done"]["scored"] if journal.exists() else 0
        assert noted <= after
        assert sent(server) <= after - noted + OPEN_ROWS
    assert process.returncode == 0 and 0 < kills <= most
    assert sent(server) == rows - noted, "the last run asks for what is left, and nothing twice"
    assert output.read_bytes() == calm.read_bytes()
    assert {path.name for path in tmp_path.glob("out*")} == {"out.jsonl"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruptions(url, server, log, tmp_path, number):
    with held(server) as hold:
        process = start(url, log, tmp_path / "out.jsonl")
        hold.wait_until_reached()
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said == "clickbert: interrupted\n"
    assert not list(tmp_path.glob("out*")), "nothing was done, and nothing is left"


def test_an_interruption_while_it_waits_for_a_pipe(url, server, log, tmp_path):
    process = start(url, "-", tmp_path / "out.jsonl", stdin=subprocess.PIPE)
    process.stdin.write(log.read_text())
    process.stdin.flush()
    eventually(lambda: sent(server) >= 512)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    said = process.stderr.read()
    assert "out.jsonl.unfinished. An input from a pipe cannot be resumed: begin anew" in said
    process.stdin.close()
    process.stderr.close()


def catches(process: subprocess.Popen, number: signal.Signals) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def waiting_in(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize(("number", "has_reader"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_an_interruption_while_nobody_reads_the_output(url, tmp_path, number, has_reader):
    make_log(tmp_path / "in.jsonl", 3000)
    pipe = tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    process = start(url, tmp_path / "in.jsonl", pipe)
    try:
        if has_reader:
            reader = os.open(pipe, os.O_RDONLY)
            eventually(lambda: waiting_in(reader) > 60_000)  # as much as a pipe holds
        else:
            eventually(lambda: catches(process, signal.SIGTERM))
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert said.startswith("clickbert: interrupted") and "Traceback" not in said
    if has_reader:
        os.close(reader)


def test_a_log_none_of_whose_rows_can_be_scored(url, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps({"query": None, "document": SECRET}) + "\n")
    assert main(["score", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o.jsonl"), "--url", url]) == 3
    printed = capsys.readouterr().err
    assert "no row could be scored; line 1: 'query' is no text" in printed and SECRET not in printed


def test_every_option_is_on_the_page():
    parser = argparse.ArgumentParser()
    score_command.add_options(parser)
    page = (Path(__file__).parents[3] / "docs" / "scoring.md").read_text(encoding="utf-8")
    options = {name for action in parser._actions for name in action.option_strings} - {"-h", "--help"}
    assert {name for name in options if not re.search(rf"{name}\b(?!-)", page)} == set()


def test_a_full_disk(url, log, tmp_path):
    done = score(url, log, "--output", "/dev/full")
    assert done.returncode == 1
    assert b"cannot write /dev/full: No space left on device" in done.stderr and b"Traceback" not in done.stderr
    make_log(log, 2000)
    limit = log.stat().st_size // 2
    output = tmp_path / "out.jsonl"
    # (Not by preexec_fn: with it Python forks, and gRPC, whose server runs in this process, may abort the child.)
    limited = ["prlimit", f"--fsize={limit}", *command(url, log, "--output", output)]
    done = subprocess.run(limited, capture_output=True, timeout=120, check=False)
    assert done.returncode == 1
    assert f"cannot write {output}.unfinished: File too large".encode() in done.stderr, done.stderr
    assert b"run the same command again to go on" in done.stderr
    assert score(url, log, "--output", output).returncode == 0
    assert [json.loads(line)["document"] for line in output.open()] == [
        json.loads(line)["document"] for line in log.open()
    ]


def test_a_server_that_is_restarted(log, tmp_path):
    """It goes away in the middle, and comes back at the same address with the next version: the job says so."""
    server = FakeTriton()
    asked, go_on = iter(range(10**6)), threading.Event()

    def hold(request):
        if request.model == MODEL and next(asked) >= 8:  # of the first two calls, or of the first and two others
            go_on.wait(60)

    server.before_infer = hold
    with grpc_server(server) as url:
        process = start(url, log, tmp_path / "out.jsonl")
        journal = tmp_path / "out.jsonl.journal"
        eventually(lambda: journal.exists() and json.loads(journal.read_text())["done"]["scored"] >= 256)
    go_on.set()
    again = FakeTriton()
    again.published = {2: again.published[1]}
    again.serving = 2
    with grpc_server(again, port=url.rpartition(":")[2]):
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 700
    warning = r"warning: scores of several versions of the model are in it \(1: (256|512) rows, 2: (444|188) rows\)"
    assert (found := re.search(warning, said)) and int(found[1]) + int(found[2]) == 700, said


def test_a_busy_server(url, server, log, tmp_path):
    chance = random.Random(3)

    def refuse(request):
        if request.model == MODEL and chance.random() < 0.3:
            raise FakeStatusError("UNAVAILABLE", "overloaded: the answer would take 12 s, but it has 10 s")

    server.before_infer = refuse
    assert score(url, log, "--output", tmp_path / "out.jsonl").returncode == 0
    server.before_infer = lambda request: None
    assert score(url, log, "--output", tmp_path / "calm.jsonl").returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes()
