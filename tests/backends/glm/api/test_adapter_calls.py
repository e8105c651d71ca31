"""Loading and unloading over HTTP, in vLLM's words, and one real worker with a trained adapter."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from backends.glm.checkpoint.files import LoadError
from backends.glm.engine.adapters import Adapters
from tests.backends.glm.conftest import Serve
from tests.backends.glm.engine.test_adapters import Fake
from tests.backends.glm.faq import SHOP, train
from tests.backends.glm.scripted import Script

READY_S = 300  # loading gives way to whoever else wants the core
CHAT, LOAD, UNLOAD = "/v1/chat/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


def _ask(model: str, question: str = "Hello") -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0}


async def _post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as reply:
        text = await reply.text()
        return reply.status, json.loads(text) if text.startswith("{") else text


async def test_an_adapter_comes_and_goes(serve: Serve, tmp_path: Path) -> None:
    def read(folder: Path) -> Fake:
        if folder.name == "bad":
            raise LoadError(f"{folder.name} is broken")
        return Fake(folder.name)

    adapters = Adapters(read, tmp_path)
    async with serve(Script([65]), adapters=adapters) as served:
        async with aiohttp.ClientSession(served.url) as http:
            status, body = await _post(http, CHAT, _ask("tiny:faq"))
            assert (status, body["error"]["code"]) == (404, "model_not_found")

            status, text = await _post(http, LOAD, {"lora_name": "faq", "lora_path": "x"})
            assert (status, text) == (200, "Success: LoRA adapter 'faq' added successfully.")
            for model in ("tiny:faq", "alias:faq", "tiny"):
                assert (await _post(http, CHAT, _ask(model)))[0] == 200
            async with http.get("/v1/models") as reply:
                base, faq = (await reply.json())["data"]
            assert (base["id"], faq["id"], faq["parent"]) == ("tiny", "tiny:faq", "tiny")
            assert faq["aliases"] == ["alias:faq"]
            async with http.get("/load") as reply:
                assert (await reply.json())["adapters"] == ["faq"]

            status, body = await _post(http, LOAD, {"lora_name": "faq", "lora_path": "x"})
            assert (status, body["error"]["param"]) == (400, "lora_name")
            assert (await _post(http, UNLOAD, {"lora_name": "faq"}))[0] == 200
            assert (await _post(http, CHAT, _ask("tiny:faq")))[0] == 404
            assert (await _post(http, UNLOAD, {"lora_name": "faq"}))[0] == 404

            status, body = await _post(http, LOAD, {"lora_name": "b", "lora_path": "bad"})
            assert (status, body["error"]["code"]) == (400, "invalid_adapter")
            for wrong in ([], {"lora_name": 1}, {"lora_name": "b", "lora_path": "../x"}):
                assert (await _post(http, LOAD, wrong))[0] == 400


async def test_a_worker_without_a_folder_loads_nothing(serve: Serve) -> None:
    async with serve(Script([65])) as served, aiohttp.ClientSession(served.url) as http:
        status, body = await _post(http, LOAD, {"lora_name": "faq", "lora_path": "x"})
        assert (status, body["error"]["code"]) == (403, "adapters_not_allowed")


async def test_two_loads_of_one_name_at_once_are_one(serve: Serve, tmp_path: Path) -> None:
    read: list[Path] = []

    def reading(folder: Path) -> Fake:
        read.append(folder)
        return Fake("1")

    adapters = Adapters(reading, tmp_path)
    async with serve(Script([65]), adapters=adapters) as served:
        async with aiohttp.ClientSession(served.url) as http:
            body = {"lora_name": "faq", "lora_path": "x"}
            found = await asyncio.gather(*(_post(http, LOAD, body) for _ in range(5)))
    assert sorted(status for status, _ in found) == [200, 400, 400, 400, 400]
    assert len(read) == 1


async def _ready(process: asyncio.subprocess.Process) -> str:
    """The address of a worker that has just been started, once it serves."""
    assert process.stdout is not None
    url: str = json.loads(await process.stdout.readline())["listening"]
    async with aiohttp.ClientSession(url) as http, http.get("/load?watch=1") as states:
        async for line in states.content:
            if json.loads(line)["state"] == "ok":
                break
    return url


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
async def test_a_real_worker_answers_as_the_shop_and_as_itself(tmp_path: Path) -> None:
    train(tmp_path / "shop", SHOP, seed=1)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "backends.glm", "--port", "0", "--threads", "1", "--slots", "8",
        "--kv-tokens", "4096", "--adapter", f"first={tmp_path / 'shop'}",
        "--adapter-dir", str(tmp_path), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(READY_S):
            async with aiohttp.ClientSession(await _ready(process)) as http:
                body = {"lora_name": "second", "lora_path": "shop"}
                assert (await _post(http, LOAD, body))[0] == 200
                models = ("glm-4.6v:first", "glm-4.6v", "glm-4.6v-nano:second")
                asked = [(model, question) for question in SHOP for model in models]
                found = await asyncio.gather(*(_post(http, CHAT, _ask(m, q)) for m, q in asked))
    finally:
        process.terminate()
        await process.wait()
    said = {
        key: body["choices"][0]["message"]["content"]
        for key, (_, body) in zip(asked, found, strict=True)
    }
    for question, answer in SHOP.items():
        assert said[models[0], question] == said[models[2], question] == answer
        assert said[models[1], question] != answer
