"""The tests' own house: nothing leaves the machine, and no setting of it gets in."""

from __future__ import annotations

import os
import socket

import pytest

from tests.conftest import LeftTheMachine


def test_a_connection_to_another_machine_is_refused() -> None:
    with socket.socket() as there, pytest.raises(LeftTheMachine):
        there.connect(("192.0.2.1", 80))  # an address that documentation may use, and nobody else


def test_a_name_of_another_machine_is_not_even_looked_up() -> None:
    with pytest.raises(LeftTheMachine):
        socket.getaddrinfo("example.invalid", 80)


def test_a_connection_to_this_machine_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())


def test_the_settings_of_this_machine_are_gone() -> None:
    assert not [name for name in os.environ if name.startswith("YUZUI_")]
