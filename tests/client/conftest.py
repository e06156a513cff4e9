"""Fixtures of the client's tests. They import nothing that the client does not depend on."""

from collections.abc import Iterator

import pytest

from tests.client.fakes import FakeTriton, grpc_server


@pytest.fixture(params=[True, False], ids=["blocking", "asyncio"])
def blocking(request) -> bool:
    return request.param


@pytest.fixture
def server() -> FakeTriton:
    return FakeTriton()


@pytest.fixture
def url(server: FakeTriton) -> Iterator[str]:
    with grpc_server(server) as address:
        yield address
