"""`Connection`: one object for everything between a caller and a server, and one place to add to it."""

import argparse
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from clickbert import AsyncRanker, AuthenticationError, Connection, InvalidInputError, Ranker
from clickbert.connection import option, variable
from tests.client.certificates import Authority
from tests.client.fakes import Guard, grpc_server, rank_once

SECRET = "s3cret"


@dataclass(frozen=True)
class Wider(Connection):
    """A connection with two more options: a field each, and its use. Nothing else has to know them."""

    server_name: str | None = field(default=None, metadata=option("NAME", "the name in the certificate"))
    api_key: str | None = field(default=None, repr=False, metadata=variable("CLICKBERT_API_KEY", "the gateway's key"))

    @property
    def channel_options(self) -> list[tuple[str, int | str]]:
        own = [] if self.server_name is None else [("grpc.ssl_target_name_override", self.server_name)]
        return [*super().channel_options, *own]

    @property
    def headers(self) -> dict[str, str]:
        return super().headers | ({} if self.api_key is None else {"x-api-key": self.api_key})


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> Path:
    return Authority(tmp_path_factory.mktemp("tls") / "ours").file


@pytest.fixture
def full(roots) -> Wider:
    certificate_file, key_file = roots, roots.with_name("authority.key")  # any certificate with its key does
    return Wider(
        "grpcs://ranking.example:443,grpcs://dns:///ranking.example:444",
        ca_file=roots,
        token=SECRET,
        certificate_file=certificate_file,
        key_file=key_file,
        server_name="other.example",
        api_key="k3y",
    )


def parse(kind: type[Connection], words: list[str], environment: dict[str, str]) -> Connection:
    parser = argparse.ArgumentParser()
    kind.add_arguments(parser)
    return kind.from_arguments(parser.parse_args(words), environment)


def test_a_connection_reaches_a_child_process_whole(full):
    assert all(getattr(full, each.name) is not None for each in fields(full)), "a field that this test would not see"
    assert parse(Wider, full.to_arguments(), full.to_environment()) == full
    assert pickle.loads(pickle.dumps(full)) == full


OPTIONAL = [[each.name] for each in fields(Wider) if each.name not in ("url", "certificate_file", "key_file")]


@pytest.mark.parametrize("names", [*OPTIONAL, ["certificate_file", "key_file"]], ids=",".join)
def test_each_field_may_be_left_out(full, names):
    partial = replace(full, **dict.fromkeys(names))
    assert parse(Wider, partial.to_arguments(), partial.to_environment()) == partial


def test_a_new_option_works_without_a_change_elsewhere(server, tmp_path, blocking):
    authority = Authority(tmp_path / "ours")
    key, certificate = authority.issue("DNS:elsewhere")
    guard = Guard("x-api-key", "k3y")
    with grpc_server(server, guard, certificate=(key.read_bytes(), certificate.read_bytes())) as address:
        given = Wider(f"grpcs://{address}", authority.file, server_name="elsewhere", api_key="k3y")
        in_child = parse(Wider, given.to_arguments(), given.to_environment())
        assert len(rank_once(in_child, blocking)) == 2
        with pytest.raises(AuthenticationError, match=r"not with \*\*\*") as caught:
            rank_once(replace(given, api_key="wr0ng"), blocking)
        assert "wr0ng" not in str(caught.value) and caught.value.__cause__ is None


def test_a_child_does_not_inherit_the_token_of_another_server():
    inherited = {"CLICKBERT_TOKEN": SECRET} | Connection("localhost:8001").to_environment()
    assert parse(Connection, [], inherited) == Connection("localhost:8001")


def test_no_command_line_and_no_repr_shows_a_secret(full):
    shown = repr(full) + "".join(full.to_arguments())
    assert SECRET not in shown and "k3y" not in shown
    assert "other.example" in shown


def test_the_help_names_every_option_and_variable(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    parser = argparse.ArgumentParser()
    Wider.add_arguments(parser)
    for part in ("--url HOST:PORT", "--ca-file FILE", "--server-name NAME", "CLICKBERT_TOKEN", "CLICKBERT_API_KEY"):
        assert part in parser.format_help()
    assert "--token" not in parser.format_help()


def test_a_command_may_take_something_else_in_place_of_the_address():
    parser = argparse.ArgumentParser()
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--repository")
    Connection.add_arguments(parser, default_url=None, url_group=either)
    assert parser.parse_args([]).url is None
    with pytest.raises(SystemExit):
        parser.parse_args(["--url", "a:1", "--repository", "b"])
    with pytest.raises(InvalidInputError, match="url is None"):
        Connection.from_arguments(parser.parse_args([]))


def test_it_is_frozen_and_equal_to_another_of_the_same_fields(roots):
    connection = Connection("grpc://localhost:8001")
    assert connection == Connection("localhost:8001") and len({connection, Connection("localhost:8001")}) == 1
    assert Connection("grpcs://localhost:1", str(roots)) == Connection("grpcs://localhost:1", roots)
    with pytest.raises(FrozenInstanceError):
        connection.url = "localhost:8002"


WRONG = ["", "localhost", "localhost:", ":1", "a:0", "a:65536", "a:b", "a:1/x", "a b:1", "a\0:1", None, 8001]
WRONG += ["http://localhost:8000", "https://a:1", "grpcs://", "grpcs://a", "grpcs://grpc://a:1", "GRPCS://a:1"]
WRONG += ["\ud800:1", "localhost:\uff18\uff10", "[::1", "[zz]:1", "[a%b]"]


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_address_is_refused_with_an_example(url):
    for make in (Connection, Ranker, AsyncRanker):
        with pytest.raises(InvalidInputError, match="like 'localhost:8001'"):
            make(url)


@pytest.mark.parametrize(
    "url",
    ["localhost:8001", "grpc://a_b.c-d:1", "[::1]:8001", "[fe80::1%eth0]:1", "10.0.0.1:65535", "grpcs://a.example:443"],
)
def test_a_good_address_is_taken_without_connecting(url):
    Ranker(url).close()


def test_the_authoritys_certificate_is_read_once(tmp_path, roots):
    copy = tmp_path / "authority.pem"
    copy.write_bytes(roots.read_bytes())
    connection = Connection("grpcs://localhost:8001", copy)
    copy.unlink()
    assert connection.credentials.roots == roots.read_bytes()


def test_a_ranker_takes_a_connection_or_an_address(url, blocking):
    assert rank_once(Connection(url), blocking) == rank_once(url, blocking)


def test_tritonclient_gets_the_same_connection(server, url, roots):
    with triton.InferenceServerClient(**Connection(url).tritonclient_arguments) as client:
        assert client.get_model_metadata("clickbert_onnx").versions == ["1"]
    assert Connection("grpcs://a:1", roots).tritonclient_arguments | {"channel_args": []} == {
        "url": "a:1",
        "ssl": True,
        "root_certificates": str(roots),
        "certificate_chain": None,
        "private_key": None,
        "channel_args": [],
    }
    assert Connection("grpcs://a:1", token=SECRET).headers == {
        "authorization": f"Bearer {SECRET}",
        "triton-grpc-protocol-clickbert-token": SECRET,
    }
