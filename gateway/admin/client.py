"""The command line's side of the admin port: plain HTTP to a gateway on this machine."""

from __future__ import annotations

import http.client
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from gateway.admin.io import ACTOR_HEADER
from gateway.config import Config
from gateway.data_dir import DataDir

TIMEOUT_S = 60.0  # a report over many rows takes its time


class AdminError(Exception):
    """The admin port could not be asked, or said no. The text says what to do."""


class AdminClient:
    """Asks the gateway that `yuzui up` runs here, or the one that the settings name."""

    def __init__(self, config: Config) -> None:
        data = DataDir(config.data_dir)
        running = data.running()
        host = "127.0.0.1" if config.admin_host == "0.0.0.0" else config.admin_host  # noqa: S104
        host = f"[{host}]" if ":" in host else host
        self._url = running.admin_url if running else f"http://{host}:{config.admin_port}"
        given = config.admin_token
        self._token = given.reveal() if given else data.admin_token()
        self.actor = _account()  # who changes a budget, for the audit trail

    def call(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: object = None
    ) -> Any:
        """Sends one request; returns the decoded JSON. Raises AdminError."""
        with self._asked(method, path, query, body) as response:
            return msgspec.json.decode(response.read())

    def lines(self, path: str, *, query: dict[str, str]) -> Iterator[bytes]:
        """Sends a GET; yields the lines of its answer as they come. Raises AdminError."""
        with self._asked("GET", path, query, None) as response:
            yield from response

    @contextmanager
    def _asked(
        self, method: str, path: str, query: dict[str, str] | None, body: object
    ) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(self._url)
        try:
            connection = http.client.HTTPConnection(
                parts.hostname or "", parts.port, timeout=TIMEOUT_S
            )
        except http.client.InvalidURL:
            raise AdminError(f"{self._url} is no address: set admin_host") from None
        target = f"{path}?{urlencode(query)}" if query else path
        data = None if body is None else msgspec.json.encode(body)
        try:
            # As bytes: a name may be a Chinese one, and http.client would write Latin-1.
            headers: dict[str, str | bytes] = {
                "Authorization": f"Bearer {self._token}",
                ACTOR_HEADER: self.actor.encode(),
            }
            connection.request(method, target, body=data, headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                said = msgspec.json.decode(response.read()).get("error", {})
                raise AdminError(str(said.get("message", response.reason)))
            yield response
        except (OSError, http.client.HTTPException):
            text = f"no gateway answers at {self._url}; is `yuzui up` running in this folder?"
            raise AdminError(text) from None
        except (msgspec.DecodeError, AttributeError):
            raise AdminError(f"what answers at {self._url} is not a Yuzui admin port") from None
        finally:
            connection.close()


def _account() -> str:
    """The name of this process's account; in a container it may have none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
