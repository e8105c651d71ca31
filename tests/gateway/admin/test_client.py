from __future__ import annotations

import os
import pwd
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from gateway.admin.client import AdminClient, AdminError
from gateway.config import Config
from gateway.data_dir import DataDir, Running


class Port(BaseHTTPRequestHandler):
    """Notes what it is asked; answers by the path."""

    seen: list[dict[str, Any]]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.seen.append({
            "line": f"{self.command} {self.path}", "token": self.headers["authorization"],
            "actor": self.headers["x-yuzui-actor"], "body": body,
        })  # fmt: skip
        answers = {
            "/no": (403, b'{"error": {"message": "not you"}}'),
            "/odd": (500, b"<html>"),
            "/list": (404, b"[]"),
            "/lines": (200, b"a\nb\n"),
        }
        status, said = answers.get(self.path.partition("?")[0], (200, b'{"a": 1}'))
        self.send_response(status)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_PUT = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def port() -> Iterator[int]:
    Port.seen = []
    with HTTPServer(("127.0.0.1", 0), Port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # looks so often
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def client(folder: Path, port: int, **more: object) -> AdminClient:
    known = {"data_dir": folder, "admin_port": port, "admin_token": "t" * 20}
    return AdminClient(Config.load(environ={}, overrides={**known, **more}))


def test_what_is_sent_and_who_sends_it(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)  # an account that has a name on every machine
    asks = client(tmp_path, port)
    assert asks.call("GET", "/x", query={"tenant": "o'neil & co"}) == {"a": 1}
    asks.actor = "ada"
    assert asks.call("PUT", "/x", body={"b": 2}) == {"a": 1}
    first, second = Port.seen
    assert first["line"] == "GET /x?tenant=o%27neil+%26+co"
    assert first["token"] == "Bearer " + "t" * 20
    assert first["actor"] == pwd.getpwuid(0).pw_name
    assert (second["line"], second["body"], second["actor"]) == ("PUT /x", b'{"b":2}', "ada")
    assert list(asks.lines("/lines", query={})) == [b"a\n", b"b\n"]


def test_whoever_asks_may_have_a_name_in_any_script(tmp_path: Path, port: int) -> None:
    asks = client(tmp_path, port)
    asks.actor = "李冰"  # who built the levee
    asks.call("PUT", "/x", body={})
    assert Port.seen[0]["actor"].encode("latin-1").decode() == "李冰"


def test_an_address_of_ipv6_stands_in_brackets(tmp_path: Path) -> None:
    assert client(tmp_path, 8081, admin_host="::1")._url == "http://[::1]:8081"


@pytest.mark.parametrize(
    ("path", "said"),
    [("/no", "^not you$"), ("/odd", "is not a Yuzui admin port"), ("/list", "is not a Yuzui")],
)
def test_a_no_and_what_is_no_admin_port(tmp_path: Path, port: int, path: str, said: str) -> None:
    with pytest.raises(AdminError, match=said):
        client(tmp_path, port).call("GET", path)
    with pytest.raises(AdminError, match=said):
        list(client(tmp_path, port).lines(path, query={}))


def test_a_port_that_is_open_to_all_is_asked_on_this_machine(tmp_path: Path, port: int) -> None:
    asked = client(tmp_path, port, admin_host="0.0.0.0")  # noqa: S104
    assert asked.call("GET", "/x") == {"a": 1}
    assert asked._url == f"http://127.0.0.1:{port}"


def test_what_runs_here_is_asked_before_what_the_settings_name(tmp_path: Path, port: int) -> None:
    data = DataDir(tmp_path)
    token = data.admin_token()
    here = Running(pid=os.getpid(), url="", admin_url=f"http://127.0.0.1:{port}")
    data.write_running(here)
    with data.lock():
        settings = Config.load(environ={}, overrides={"data_dir": tmp_path, "admin_port": 1})
        assert AdminClient(settings).call("GET", "/x") == {"a": 1}
    assert Port.seen[0]["token"] == f"Bearer {token}"


def test_an_account_without_a_name_is_a_number(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under any number."""
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    assert client(tmp_path, port).actor == f"uid {2**31 - 5}"
