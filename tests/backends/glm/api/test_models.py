from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from backends.glm.api.models import described, listed
from backends.glm.api.service import Service, Serving
from backends.glm.engine.adapters import Adapters
from backends.glm.engine.engine import Engine
from backends.glm.errors import WorkerError, WorkerUnavailable
from backends.glm.model.load import Checkpoint
from backends.glm.request.limits import Limits
from tests.backends.glm.conftest import no_adapter


class Loaded:
    key, rank = "k", 4


@pytest.fixture
def service(checkpoint: Checkpoint) -> Service:
    made = Service(names=("base", "alias"), worker="w")
    adapters = Adapters(no_adapter, Path())
    adapters.add("shop", Loaded())
    preparer = checkpoint.preparer(Limits())
    made.ready(Serving(engine=cast(Engine, None), preparer=preparer, adapters=adapters))
    return made


def test_the_base_and_its_adapters_are_listed(service: Service) -> None:
    base, shop = listed(service)["data"]
    assert (base["id"], base["aliases"], base["created"]) == ("base", ["alias"], service.ready_s)
    assert (shop["id"], shop["aliases"]) == ("base:shop", ["alias:shop"])
    assert shop["parent"] == "base"


@pytest.mark.parametrize("name", ["base", "alias", "base:shop", "alias:shop"])
def test_each_is_found_by_every_name(service: Service, name: str) -> None:
    found: dict[str, Any] = described(service, name)
    assert found["id"] == name
    assert ("parent" in found) == name.endswith(":shop")


def test_what_is_not_there(service: Service) -> None:
    with pytest.raises(WorkerError) as caught:
        described(service, "shop")
    assert (caught.value.status, caught.value.param) == (404, "model")
    with pytest.raises(WorkerUnavailable):
        described(Service(names=("base",), worker="w"), "base")
