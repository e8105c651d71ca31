from __future__ import annotations

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.admin.io import actor, answer_json, moment
from gateway.errors import GatewayError


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
