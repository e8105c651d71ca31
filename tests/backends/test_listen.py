from __future__ import annotations

import errno
import socket
from unittest.mock import patch

import pytest
from aiohttp import web

from backends.listen import ListenError, listen
from tests.ports import free_port

NAMES = ("--host", "--port")


async def tried(host: str, port: int) -> ListenError | None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        await listen(web.TCPSite(runner, host, port), host=host, port=port, names=NAMES)
    except ListenError as error:
        return error
    finally:
        await runner.cleanup()
    return None


async def test_an_address_of_this_machine_is_listened_on() -> None:
    assert await tried("127.0.0.1", 0) is None
    assert await tried("localhost", free_port()) is None


@pytest.mark.parametrize("host", ["a..b", "x" * 80])
async def test_a_host_that_is_none_is_a_wrong_argument(host: str) -> None:
    error = await tried(host, 0)
    assert error is not None
    assert error.code == 2
    assert str(error).startswith(f"--host {host!r} is not known: set --host to 127.0.0.1")


@pytest.mark.parametrize(("number", "code"), [(socket.EAI_NONAME, 2), (socket.EAI_AGAIN, 1)])
async def test_a_name_that_nobody_knows_or_nobody_was_asked_for(number: int, code: int) -> None:
    unknown = socket.gaierror(number, "not known")  # played: no name server is asked here
    with patch.object(web.TCPSite, "start", side_effect=unknown):
        error = await tried("nowhere.invalid", 0)
    assert error is not None
    assert error.code == code
    assert str(error).startswith("--host 'nowhere.invalid' is not known: set --host to 127.0.0.1")


async def test_an_address_of_another_machine_may_come_to_this_one_later() -> None:
    error = await tried("192.0.2.1", 0)  # TEST-NET-1 of RFC 5737: nobody has it
    assert error is not None
    assert error.code == 1
    assert str(error).startswith("--host '192.0.2.1' is no address of this machine: set --host")


async def test_a_port_that_is_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = await tried("127.0.0.1", port)
    assert error is not None
    assert (error.code, str(error)) == (
        1, f"port {port} of 127.0.0.1 is in use by another program: set --port to a free one",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EACCES, "set --port to one from 1024 on"), (errno.EMFILE, "cannot listen on")],
)
async def test_other_reasons_are_told_as_the_system_says_them(number: int, said: str) -> None:
    """Root may use every port, so the system's refusal is played."""
    refusal = OSError(number, "refused")
    with patch.object(web.TCPSite, "start", side_effect=refusal):
        error = await tried("127.0.0.1", 80)
    assert error is not None
    assert error.code == 1
    assert said in str(error)
