"""The public paths: what becomes of errors on their way to a client, or to one that has left."""

import logging

import pytest
from aiohttp import ClientError, ClientSession, web
from aiohttp.test_utils import TestServer

from gateway.routes import errors_as_json


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_left_is_no_error_of_ours(
    begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    async def leaves(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if begun:
            await response.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        seen.append(True)
        raise ConnectionResetError("the client has left")

    app = web.Application(middlewares=[errors_as_json])
    app.router.add_get("/", leaves)
    caplog.set_level(logging.ERROR)
    async with TestServer(app) as server, ClientSession() as client:
        with pytest.raises((ClientError, OSError)):
            async with client.get(server.make_url("/")) as answer:
                await answer.read()
    assert seen
    assert not caplog.records


async def test_an_error_that_nobody_expected_is_logged_and_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def breaks(_: web.Request) -> web.StreamResponse:
        raise RuntimeError("the secret of the house")

    app = web.Application(middlewares=[errors_as_json])
    app.router.add_get("/", breaks)
    async with TestServer(app) as server, ClientSession() as client:
        async with client.get(server.make_url("/")) as answer:
            assert answer.status == 500
            assert "secret" not in await answer.text()
