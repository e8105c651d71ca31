"""Engines that are not ours, and several gateways, through a real gateway on real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from backends.scripted_server import ScriptedServer, ServerOptions
from gateway.data_dir import DataDir, Running
from tests.backends import conforming
from tests.gateway.rig import ADMIN_TOKEN, Rig, rig


def pool(*workers: dict[str, Any], **more: Any) -> dict[str, object]:
    return {"pool.workers": list(workers), **more}


async def up(house: Rig, count: int) -> None:
    async with asyncio.timeout(60):
        while True:
            listed = await house.admin("GET", "/admin/workers")
            if sum(worker["health"] == "up" for worker in listed) >= count:
                return
            await asyncio.sleep(0.05)


async def test_vllm_and_sglang_beside_each_other_answer_alike(books_url: str) -> None:
    async with conforming.Vllm() as one, conforming.Sglang() as other:
        named = [{"url": one.url, "name": "a"}, {"url": other.url, "name": "b"}]
        async with rig(books_url, workers=[], cloud=True, settings=pool(*named)) as house:
            await up(house, 2)
            engines = {w["name"]: w["engine"] for w in await house.admin("GET", "/admin/workers")}
            assert engines == {"a": "vllm", "b": "sglang"}
            seen = set()
            for number in range(20):
                prompt = [{"role": "user", "content": f"{number} what is it?"}]
                answer = await house.ask(messages=prompt)
                message = answer.json["choices"][0]["message"]
                assert message["content"] == "a red circle"
                assert message["reasoning_content"] == "it is red"
                streamed = await house.ask(messages=prompt, stream=True)
                assert streamed.ended_well
                deltas = [c["delta"] for chunk in streamed.chunks for c in chunk["choices"]]
                assert "".join(d.get("reasoning_content") or "" for d in deltas) == "it is red"
                seen |= {answer.header("route"), streamed.header("route")}
            assert seen == {"local:a", "local:b"}
            rows = await house.settled()
            assert {(row.cached_tokens, row.image_tokens) for row in rows} == {(64, 144)}
            assert {row.reasoning_tokens for row in rows} == {2}
            for engine in (one, other):
                assert all(body["cache_salt"] for body in engine.asked)
                assert all("priority" not in body for body in engine.asked)


async def test_tenants_and_labels_never_share_what_an_engine_keeps(books_url: str) -> None:
    async with conforming.Vllm() as engine:
        settings = pool({"url": engine.url, "name": "a"})
        async with rig(books_url, workers=[], cloud=True, settings=settings) as house:
            await up(house, 1)
            for tenant, label in (("a", "public"), ("a", "sensitive"), ("b", "public")):
                headers = {
                    "Authorization": f"Bearer {house.token(tenant=tenant)}",
                    "x-yuzui-sensitivity": label,
                }
                for _ in range(2):
                    assert (await house.ask(headers, model="local/glm-4.6v")).status == 200
            salts = [body["cache_salt"] for body in engine.asked]
            assert salts[0::2] == salts[1::2]
            assert len(set(salts)) == 3


async def test_a_worker_that_may_not_see_a_label_does_not(books_url: str) -> None:
    async with ScriptedServer(ServerOptions()) as public, ScriptedServer(ServerOptions()) as ours:
        settings = pool(
            {"url": public.url, "name": "p", "labels": ["public"]},
            {"url": ours.url, "name": "o", "tenants": ["t"]},
        )
        async with rig(books_url, workers=[], settings=settings) as house:
            await up(house, 2)
            pinned = house.headers(sensitivity="sensitive")
            answers = await asyncio.gather(*(house.ask(pinned) for _ in range(20)))
            assert {answer.header("route") for answer in answers} == {"local:o"}
            other = {"Authorization": f"Bearer {house.token(tenant='x')}"}
            refused = await house.ask({**other, "x-yuzui-sensitivity": "sensitive"})
            assert (refused.status, refused.code) == (400, "unsupported_request")
            assert "label or tenant" in refused.json["error"]["message"]
            assert public.answered == 0
            routed = await house.ask({**other, "x-yuzui-sensitivity": "public"})
            assert routed.header("route") == "local:p"


async def test_a_foreign_engines_refusal_names_the_field_and_quotes_nothing(books_url: str) -> None:
    async with conforming.Vllm() as one, conforming.Sglang() as other:
        for engine in (one, other):
            settings = pool({"url": engine.url, "name": "a"})
            async with rig(books_url, workers=[], settings=settings) as house:
                await up(house, 1)
                # a prompt whose size the gateway guesses too low
                refused = await house.ask(
                    messages=[{"role": "user", "content": "x" * 70_000}], max_tokens=20_000
                )
                error = refused.json["error"]
                assert (refused.status, error["code"]) == (400, "context_length_exceeded")
                assert error["param"] == "messages"
                assert f"{conforming.CONTEXT} tokens" in error["message"]
                assert "requested" not in error["message"]  # a word of the engine's text


async def test_a_full_engine_gives_back_what_it_cannot_take(books_url: str) -> None:
    """It takes three at once and says busy to the rest; its slots are not known here."""
    async with conforming.Vllm(queue_max=3, pace_s=0.05) as engine:
        settings = pool({"url": engine.url, "name": "a"})
        async with rig(books_url, workers=[], cloud=True, settings=settings) as house:
            await up(house, 1)
            pinned = house.headers(sensitivity="sensitive")
            answers = await asyncio.gather(*(house.ask(pinned) for _ in range(9)))
            assert {answer.status for answer in answers} == {200}
            assert max(int(answer.header("attempts") or 0) for answer in answers) > 1
            assert len(await house.settled()) == 9  # what was given back leaves no row


async def test_two_gateways_share_a_pool_and_no_request_is_lost(books_url: str) -> None:
    slow = ServerOptions(chunks=5, first_ms=150, slots=2)
    async with ScriptedServer(slow) as one, ScriptedServer(slow) as other:
        shared = {"workers": [one.url, other.url]}
        async with (
            rig(books_url, workers=[], settings=shared) as left,
            rig(books_url, workers=[], settings=shared) as right,
        ):
            await up(left, 2)
            await up(right, 2)
            houses = [left, right] * 10
            asking = asyncio.gather(*(house.ask() for house in houses))
            most = 0
            while not asking.done():
                most = max(most, one.running, other.running)
                await asyncio.sleep(0.005)
            assert {answer.status for answer in await asking} == {200}
            # each sees the other's requests in the reports, and what both send in the same moment
            # waits at the worker at most once for each of its slots
            assert most <= 2 * slow.slots


async def test_a_conversation_stays_with_the_worker_that_has_read_it(books_url: str) -> None:
    options = [ServerOptions(chunks=3) for _ in range(4)]
    async with rig(books_url, workers=options) as house:
        await up(house, 4)
        long = "word " * 20_000
        talk = [{"role": "user", "content": long}]
        first = (await house.ask(messages=talk)).header("route")
        for number in range(6):
            talk += [
                {"role": "assistant", "content": "x"},
                {"role": "user", "content": f"{number}"},
            ]
            assert (await house.ask(messages=talk)).header("route") == first
        others = {
            (await house.ask(messages=[{"role": "user", "content": f"{n} {long}"}])).header("route")
            for n in range(12)
        }
        assert len(others) > 1  # the positive control: others go elsewhere


async def test_an_adapter_is_asked_of_the_worker_that_has_it(books_url: str) -> None:
    async with conforming.Vllm() as one, conforming.Vllm() as other:
        other.adapters = ("shop-faq",)
        named = [{"url": one.url, "name": "a"}, {"url": other.url, "name": "b"}]
        async with rig(books_url, workers=[], cloud=True, settings=pool(*named)) as house:
            await up(house, 2)
            for _ in range(6):
                answer = await house.ask(model="glm-4.6v:shop-faq")
                assert (answer.status, answer.header("route")) == (200, "local:b")
            assert {body["model"] for body in other.asked} == {"shop-faq"}
            async with house.http.get(house.url + "/v1/models", headers=house.headers()) as reply:
                listed = {model["id"] for model in (await reply.json())["data"]}
            assert {"glm-4.6v", "glm-4.6v:shop-faq"} <= listed
            assert one.asked == []
            # It never goes to the cloud, where nobody has it, and one that nobody has is unknown.
            assert (await house.ask(model="cloud/glm-4.6v:shop-faq")).status >= 400
            unknown = await house.ask(model="glm-4.6v:other")
            assert (unknown.status, unknown.code) == (404, "model_not_found")
            assert (
                "no worker has the adapter 'other' of 'glm-4.6v'"
                in unknown.json["error"]["message"]
            )


async def test_a_restart_is_asked_for_by_the_admin_port_and_comes_as_a_signal(
    books_url: str, tmp_path: Path
) -> None:
    settings = {"data_dir": str(tmp_path)}
    async with rig(books_url, settings=settings) as house:
        await up(house, 1)

        async def ask(*names: str) -> tuple[int, Any]:
            url = f"{house.admin_url}/admin/workers/restart"
            headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
            sent = {"names": list(names)}
            async with house.http.post(url, json=sent, headers=headers) as response:
                return response.status, await response.json()

        status, refused = await ask()
        assert (status, refused["error"]["code"]) == (409, "not_supervised")
        data = DataDir(tmp_path)
        data.make()
        held = data.lock()
        data.write_running(Running(pid=os.getpid(), url=house.url, admin_url=house.admin_url))
        worker = {"name": "worker-1", "url": house.workers[0].url, "pid": 1, "state": "running"}
        data.write_workers(json.dumps([{**worker, "restarts": 0}]).encode())
        (listed,) = await house.admin("GET", "/admin/workers")
        assert listed["supervised"]["name"] == "worker-1"
        came = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, came.set)
        try:
            assert await ask("w1") == (200, {"restarting": ["worker-1"]})
            await asyncio.wait_for(came.wait(), 20)
            assert data.asked_restart() == ["worker-1"]
            assert data.asked_restart() is None  # it is asked for once
            status, refused = await ask("w7")
            assert status == 404
            assert "it runs: worker-1" in refused["error"]["message"]
        finally:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
            held.close()
