"""The newcomer's first answer: a drawn picture, the OpenAI SDK, and a real local GLM-4.6V."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import structlog
from PIL import Image
from transformers import AutoTokenizer, Glm46VImageProcessorPil

from backends.glm.nano import CHECKPOINT
from backends.glm.nano.draw import draw_scene
from backends.glm.nano.talk import Question, questions_for
from gateway.data_dir import DataDir
from gateway.machine.stack import _probe
from gateway.machine.workers import LocalWorkers
from gateway.processes import Child
from gateway.tasks import spawn
from policies.types import Site
from tests.backends.glm.faq import SHOP, train
from tests.gateway.rig import rig
from tests.ports import free_port

PICTURES = 12
RIGHT_MIN = 10  # of them; the full figures are in backends/glm/nano/EVALUATION.md


def drawn(seed: int) -> tuple[Image.Image, str, Question]:
    """A picture, its data URL, and a question whose answer is known."""
    picture, scene = draw_scene(f"whole-way-{seed}", size=224)
    out = io.BytesIO()
    picture.save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    (question,) = questions_for(scene, random.Random(seed), 1)
    return picture, url, question


async def test_a_drawn_picture_is_answered_truly_plain_and_streamed(
    books_url: str, worker_url: str
) -> None:
    processor = Glm46VImageProcessorPil.from_pretrained(CHECKPOINT)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    right = 0
    async with rig(books_url, workers=[], settings={"workers": [worker_url]}) as house:
        await house.ready_worker()
        # A tenant of its own: what the worker keeps of other tests' pictures is not for it.
        client = openai.AsyncOpenAI(
            base_url=f"{house.url}/v1", api_key=house.token(tenant="pictures")
        )
        for seed in range(PICTURES):
            picture, url, question = drawn(seed)
            image = {"type": "image_url", "image_url": {"url": url}}
            parts = [image, {"type": "text", "text": question.text}]
            messages = [{"role": "user", "content": parts}]
            plain = await client.chat.completions.create(model="glm-4.6v", messages=messages)
            text, usage = plain.choices[0].message.content or "", plain.usage
            chunks = [
                chunk
                async for chunk in await client.chat.completions.create(
                    model="glm-4.6v",
                    messages=messages,
                    stream=True,
                    stream_options={"include_usage": True},
                )
            ]
            streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert streamed == text
            right += text.strip() == question.answer

            patches = processor.get_number_of_image_patches(picture.height, picture.width)
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, parts[1]]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            size = len(tokenizer(prompt, add_special_tokens=False).input_ids) + patches // 4 - 1
            assert usage is not None
            assert usage.prompt_tokens == size
            assert usage.prompt_tokens_details is not None
            assert usage.model_dump()["prompt_tokens_details"]["image_tokens"] == patches // 4
            assert chunks[-1].usage is not None
            again = chunks[-1].usage.model_dump()
            # Asked the second time, what was read the first time is not read again.
            assert again["prompt_tokens_details"].pop("cached_tokens") > 0
            first = usage.model_dump()
            assert first["prompt_tokens_details"].pop("cached_tokens") == 0
            assert again == first
        await client.close()
        rows = await house.settled()
        assert len(rows) == 2 * PICTURES
        assert {row.site for row in rows} == {Site.LOCAL}
        assert all(row.slot_ms > 0 for row in rows)
        # the rule that counts a picture before it is sent is that of the engine itself
        assert all(row.image_tokens == row.image_tokens_expected > 0 for row in rows)
        assert all(0 < row.marginal_nano < row.posted_nano for row in rows)
    assert right >= RIGHT_MIN


SECRET = "MARKER9731"  # stands for what a caller wrote
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
# what a caller wrote wrong -> the field, and words of the reason and the remedy
MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a tool without a name": ({"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name", "1 to 128 letters"),
    "a tool that is not there": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": SECRET}}},
        "tool_choice", "not in `tools`"),
    "a schema that cannot be followed": (
        {"structured_outputs": {"json": {"type": SECRET}}}, "structured_outputs.json", "followed"),
    "a word that the model does not have": ({"stop_token_ids": [1_000_000]},
        "stop_token_ids", "does not have"),
    "a picture that is cut off": ({"messages": [{"role": "user", "content": [{
        "type": "image_url", "image_url": {"url": "data:image/png;base64,BROKEN"}}]}]},
        "messages[0].content[0].image_url", ""),
}  # fmt: skip


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What every logger of the gateway says, whatever loggers were set up to do before."""
    capture = structlog.testing.LogCapture()
    heard = structlog.wrap_logger(structlog.PrintLogger(), processors=[capture])
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("gateway", "backends") and hasattr(module, "_log"):
            monkeypatch.setattr(module, "_log", heard)
    return capture.entries


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_a_worker_refuses_is_told_to_the_caller_with_field_and_reason_and_never_logged(
    books_url: str, worker_url: str, streamed: bool, logged: list[Any]
) -> None:
    _, url, _ = drawn(1)
    async with rig(books_url, workers=[], settings={"workers": [worker_url]}) as house:
        await house.ready_worker()
        for wrong, param, said in MISTAKES.values():
            body = dict(wrong)
            if "messages" in body:
                body["messages"][0]["content"][0]["image_url"]["url"] = url[: 22 + 400]
            answer = await house.ask(stream=streamed, **body)
            assert answer.status == 400, answer.body
            error = answer.json["error"]
            assert error["param"] == param
            assert said in error["message"]
            assert error["code"] not in (None, "400", "invalid_request_error")
        await house.ask()
        # the control: what can be answered leaves a line
        assert "exchange" in {entry["event"] for entry in logged}
        assert SECRET not in repr(logged)


async def test_a_prompt_that_is_too_long_has_the_code_that_clients_look_for(
    books_url: str, worker_url: str
) -> None:
    """By the gateway's own count, and by the worker's where the gateway's guess was too low."""
    async with rig(books_url, workers=[], settings={"workers": [worker_url]}) as house:
        await house.ready_worker()
        client = openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=house.token())
        for text in ("a long text " * 20_000, "~#" * 6_000):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(
                    model="glm-4.6v", messages=[{"role": "user", "content": text}]
                )
            assert caught.value.code == "context_length_exceeded"
            assert caught.value.param == "messages"
            assert "4096 tokens" in str(caught.value)
        await client.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
async def test_an_adapter_that_was_loaded_by_call_is_served_through_a_rolling_restart(
    books_url: str, tmp_path: Path
) -> None:
    """A real worker under its real supervisor, and callers who never stop asking for the shop."""
    train(tmp_path / "shop", SHOP, seed=1)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "backends.glm", "--port", str(port), "--threads", "1"]
    command += ["--name", "w1", "--adapter-dir", str(tmp_path)]
    data = DataDir(tmp_path / "data")
    data.make()
    said: list[str] = []
    child = Child("w1", command, env=dict(os.environ), logs=data.logs, say=said.append)
    await child.start()
    supervisor = LocalWorkers(
        [(child, url)], data=data, hang_s=600.0, drain_s=60.0, probe=_probe, say=said.append
    )
    question, answer = next(iter(SHOP.items()))
    shop = {
        "model": "glm-4.6v:shop-faq", "temperature": 0, "max_tokens": 12,
        "messages": [{"role": "user", "content": question}],
    }  # fmt: skip
    try:
        async with rig(books_url, workers=[], settings={"workers": [url]}) as house:
            await house.ready_worker()
            assert (await house.ask(**shop)).status == 404
            body = {"lora_name": "shop-faq", "lora_path": "shop"}
            async with house.http.post(f"{url}/v1/load_lora_adapter", json=body) as loaded:
                assert loaded.status == 200, await loaded.text()
            while (await house.ask(**shop)).status == 404:  # noqa: ASYNC110 - until it has reported
                await asyncio.sleep(0.05)
            before = child.pid
            rolling = spawn(supervisor.roll(), name="roll")
            found = []
            while not rolling.done():
                found.append(await house.ask(**shop))
            found.append(await house.ask(**shop))
            assert rolling.result(), said
            assert child.pid != before
            assert {one.status for one in found} == {200}
            texts = {one.json["choices"][0]["message"]["content"] for one in found}
            assert texts == {answer}
            async with house.http.post(f"{url}/v1/unload_lora_adapter", json=body) as gone:
                assert gone.status == 200
            assert '"shop-faq"' not in (tmp_path / ".loaded-w1.json").read_text()
    finally:
        await child.stop(5)


async def test_a_crowd_on_one_worker_and_what_must_stay_stays(
    books_url: str, worker_url: str
) -> None:
    _, url, question = drawn(1)
    image = {"type": "image_url", "image_url": {"url": url}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": question.text}]}]
    settings: dict[str, object] = {"workers": [worker_url]}
    async with rig(books_url, workers=[], settings=settings) as house:
        await house.ready_worker()
        assert (await house.ask(messages=messages)).status == 200
        (alone,) = await house.settled()
    assert alone.ttft_ms is not None
    # One alone has its first token in a quarter of that; of a crowd on two slots some cannot.
    settings["limits.ttft_interactive_s"] = max(0.3, 4 * alone.ttft_ms / 1000)
    async with rig(books_url, workers=[], cloud=True, settings=settings) as house:
        await house.ready_worker()
        answers = await asyncio.gather(*(house.ask(messages=messages) for _ in range(64)))
        assert {answer.status for answer in answers} == {200}
        routes = [answer.header("route") or "" for answer in answers]
        assert {route.partition(":")[0] for route in routes} == {"local", "cloud"}
        sent = len(await house.cloud_requests())
        assert sent == sum(route.startswith("cloud:") for route in routes)
        pinned = house.headers(sensitivity="sensitive")
        kept = await asyncio.gather(*(house.ask(pinned, messages=messages) for _ in range(64)))
        assert {answer.header("route") for answer in kept if answer.status == 200} == {"local:w1"}
        assert {answer.status for answer in kept} <= {200, 503}
        assert len(await house.cloud_requests()) == sent
