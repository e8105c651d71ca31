from __future__ import annotations

from urllib.parse import urlencode

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.admin.io import MOMENT_MS_MAX, actor, answer_json, moment
from gateway.errors import GatewayError


@pytest.mark.parametrize("text", ["-1", "", "1.0", "1e3", "1_0", "٣", " 5", "9" * 15, "9" * 400])
def test_what_is_no_moment(text: str) -> None:
    request = make_mocked_request("GET", f"/x?{urlencode({'since': text})}")
    with pytest.raises(GatewayError, match="since must be milliseconds since 1970") as caught:
        moment(request, "since")
    assert caught.value.status == 400
    latest = make_mocked_request("GET", f"/x?since={MOMENT_MS_MAX}")
    assert moment(latest, "since") == MOMENT_MS_MAX


def test_moments_and_actors() -> None:
    request = make_mocked_request("GET", "/x?since=5&until=x", headers={"x-yuzui-actor": "ada"})
    assert moment(request, "since") == 5
    assert moment(request, "other") is None
    with pytest.raises(GatewayError, match="until must be milliseconds") as caught:
        moment(request, "until")
    assert caught.value.param == "until"
    assert actor(request) == "ada"
    assert actor(make_mocked_request("GET", "/")) == "admin"
    assert answer_json([1]).body == msgspec.json.encode([1])
