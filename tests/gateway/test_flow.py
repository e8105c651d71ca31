"""One request from the client to the books, through a real gateway on real sockets."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from PIL import Image
from volcenginesdkarkruntime import AsyncArk

from backends.scripted_server import ScriptedServer, ServerOptions
from gateway.ledger.rows import Outcome, Row, RowState
from gateway.tasks import spawn
from policies.types import Sensitivity, Site, SloClass
from tests.gateway.redis_servers import RealServer
from tests.gateway.rig import ADMIN_TOKEN, PATIENCE_S, rig, until
from tests.ports import free_port

QUICK = ServerOptions(chunks=5)
# One slot and one place in its queue: the third caller at once finds it full.
NARROW = ServerOptions(chunks=5, slots=1, first_ms=300)
CLOUD = "cloud:doubao-seed-2-1-lite-260915"


def picture(width: int = 64, height: int = 64) -> dict[str, Any]:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def asking(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is it?"}]}]


async def test_a_plain_answer_says_where_it_came_from_and_what_it_cost(books_url: str) -> None:
    async with rig(books_url, workers=[QUICK]) as house:
        answer = await house.ask(messages=asking(picture()))
        assert answer.status == 200
        assert answer.json["choices"][0]["message"]["content"].startswith("word")
        assert answer.header("route") == "local:w1"
        assert answer.header("reason") == "local_fits"
        assert answer.header("attempts") == "1"
        (row,) = await house.settled()
        assert row.request_id == answer.header("request-id")
        assert (row.site, row.target, row.model) == (Site.LOCAL, "w1", "glm-4.6v")
        assert (row.prompt_tokens, row.completion_tokens) == (12, 5)
        assert (row.outcome, row.state, row.final) == (Outcome.OK, RowState.FINAL, True)
        assert float(answer.header("cost-cny") or 0) == row.posted_nano / 1e9 > 0
        assert float(answer.header("saved-cny") or 0) == row.saved_nano / 1e9


@pytest.mark.parametrize("asked", [None, True, False], ids=["silent", "asked", "refused"])
async def test_a_stream_ends_with_the_decision_and_the_cost(
    books_url: str, asked: bool | None
) -> None:
    async with rig(books_url, workers=[QUICK]) as house:
        more = {} if asked is None else {"stream_options": {"include_usage": asked}}
        answer = await house.ask(stream=True, **more)
        assert answer.ended_well
        assert answer.header("route") == "local:w1"
        *others, last = answer.chunks
        assert all("yuzui" not in chunk for chunk in others)
        assert last["yuzui"]["reason"] == "local_fits"
        assert last["yuzui"]["cost_cny"] > 0
        assert ("usage" in last and last["choices"] == []) == bool(asked)
        # a client that did not ask for usage must never see a chunk without choices
        assert all(chunk["choices"] for chunk in answer.chunks) != bool(asked)
        (row,) = await house.settled()
        assert row.stream
        assert row.completion_tokens == 5
        assert row.finish_reason == "stop"


async def test_the_openai_and_the_ark_sdk_need_only_another_address_and_key(books_url: str) -> None:
    async with rig(books_url, workers=[QUICK]) as house:
        client = openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=house.token())
        plain = await client.chat.completions.create(model="glm-4.6v", messages=asking(picture()))
        assert plain.usage is not None
        assert plain.usage.completion_tokens == 5
        stream = await client.chat.completions.create(
            model="glm-4.6v-flash", messages=asking(), stream=True
        )
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(texts).split() == ["word"] * 5
        models = (await client.models.list()).data
        assert {m.id for m in models} >= {"glm-4.6v", "local/glm-4.6v"}
        assert all(m.created > 1_700_000_000 for m in models)
        for name in ("glm-4.6v", "local/glm-4.6v"):
            assert (await client.models.retrieve(name)).id == name
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.models.retrieve("gpt-5")
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError, match="no model"):
            await client.chat.completions.create(model="gpt-9", messages=asking())
        await client.close()

        ark = AsyncArk(base_url=f"{house.url}/api/v3", api_key=house.token())
        answer = await ark.chat.completions.create(model="glm-4.6v", messages=asking())
        assert answer.choices[0].message.content.startswith("word")
        async with await ark.chat.completions.create(
            model="glm-4.6v", messages=asking(), stream=True
        ) as chunks:
            assert len([chunk async for chunk in chunks]) == 7
        await ark.close()
        assert len(await house.settled()) == 4


async def test_the_predict_api(books_url: str) -> None:
    async with rig(books_url, workers=[QUICK]) as house:
        sent = {"prompt": "what?", "image_url": picture()["image_url"]["url"]}
        url = f"{house.url}/v1/models/glm-4.6v:predict"
        async with house.http.post(url, json=sent, headers=house.headers()) as response:
            assert response.status == 200
            assert (await response.json())["text"].split() == ["word"] * 5
            assert response.headers["x-yuzui-route"] == "local:w1"


async def test_what_the_pool_cannot_take_in_time_goes_to_the_cloud(books_url: str) -> None:
    async with rig(books_url, workers=[NARROW], cloud=True) as house:
        answers = await asyncio.gather(*(house.ask() for _ in range(64)))
        assert {answer.status for answer in answers} == {200}
        routes = {answer.header("route") for answer in answers}
        assert routes == {"local:w1", CLOUD}
        for answer in answers:
            expected = {"local_fits"} if answer.header("route") == "local:w1" else {"pool_full"}
            # a worker that was quicker to fill than to report hands on to the next attempt
            assert answer.header("reason") in expected | {"fallback"}
        rows = await house.settled()
        assert len([row for row in rows if row.final]) == 64
        emulated = await house.cloud_requests()
        assert len(emulated) == sum(answer.header("route") == CLOUD for answer in answers)


@pytest.mark.parametrize("label", ["sensitive", "SENSITIVE ", "sensitve", ""])
async def test_what_must_stay_never_reaches_the_cloud(books_url: str, label: str) -> None:
    """However many ask at once, and also when the label is one that nobody knows."""
    short = {"pool.queue_max": 4}
    async with rig(books_url, workers=[NARROW], cloud=True, settings=short) as house:
        headers = house.headers(sensitivity=label)
        answers = await asyncio.gather(*(house.ask(headers) for _ in range(64)))
        assert {answer.status for answer in answers} == {200, 503}
        for answer in answers:
            assert answer.header("sensitivity") == "sensitive"
            known = label.strip().lower() == "sensitive"
            assert (answer.header("sensitivity-note") is None) == known
            if answer.status == 503:
                assert answer.code == "sensitive_local_unavailable"
                assert int(answer.headers["retry-after"]) >= 1
            else:
                assert answer.header("reason") in ("sensitive_pinned", "fallback")
        assert await house.cloud_requests() == []
        asked = await house.ask(headers, model="cloud/glm-4.6v")
        assert (asked.status, asked.code) == (403, "sensitive_pinned")
        assert await house.cloud_requests() == []
        # the positive control: without the label the same request does go out
        assert (await house.ask(model="cloud/glm-4.6v")).status == 200
        assert len(await house.cloud_requests()) == 1


async def test_a_deadline_that_the_pool_cannot_meet_goes_out(books_url: str) -> None:
    slow = ServerOptions(chunks=5, slots=1, first_ms=1500)
    async with rig(books_url, workers=[slow], cloud=True) as house:
        first = spawn(house.ask(), name="asking")
        await until(lambda: house.workers[0].running > 0)
        hurried = await house.ask(house.headers(deadline_ms="600"))
        assert (hurried.header("route"), hurried.header("reason")) == (CLOUD, "deadline")
        patient = await house.ask(house.headers(deadline_ms="30000"))
        assert patient.header("route") == "local:w1"
        assert (await first).status == 200
        wrong = await house.ask(house.headers(deadline_ms="soon"))
        assert (wrong.status, wrong.json["error"]["param"]) == (400, "x-yuzui-deadline-ms")


async def test_a_spent_budget_says_which_and_when_it_starts_anew(books_url: str) -> None:
    async with rig(books_url, cloud=True) as house:
        await house.budget("backend:cloud", 1)
        answer = await house.ask(model="cloud/glm-4.6v")
        assert (answer.status, answer.code) == (429, "insufficient_quota")
        assert answer.headers["x-should-retry"] == "false"
        assert await house.cloud_requests() == []
        # the premises have no such budget
        assert (await house.ask()).header("route") == "local:w1"
        await house.budget("tenant:t", 1, "month")
        both = await house.ask()
        assert (both.status, both.code) == (429, "insufficient_quota")
        assert both.header("reason") == "budget_exhausted"


async def test_200_clients_cannot_overspend(books_url: str) -> None:
    """A cloud budget worth 40 % of what they would spend, watched all the while."""
    async with rig(books_url, workers=[], cloud=True) as house:
        one = await house.ask(max_tokens=64)
        (row,) = await house.settled()
        assert one.status == 200
        limit = row.posted_nano * 80
        await house.budget("backend:cloud", limit)
        over: list[int] = []

        async def watch() -> None:
            while True:
                (budget,) = await house.admin("GET", "/admin/budgets")
                over.append(budget["posted_nano"] + budget["held_nano"] - limit)
                await asyncio.sleep(0)

        watcher = spawn(watch(), name="watcher")
        answers = await asyncio.gather(*(house.ask(max_tokens=64) for _ in range(200)))
        watcher.cancel()
        statuses = [answer.status for answer in answers]
        assert set(statuses) == {200, 429}
        assert max(over) <= 0
        assert len(over) > 1
        rows = await house.settled()
        assert len(rows) == 1 + statuses.count(200)
        (budget,) = await house.admin("GET", "/admin/budgets")
        assert budget["held_nano"] == 0
        assert budget["posted_nano"] == sum(r.posted_nano for r in rows[1:]) <= limit


async def test_another_attempt_takes_over_while_nothing_was_delivered(books_url: str) -> None:
    soon = {"limits.ttft_interactive_s": 0.3}
    async with rig(books_url, workers=[QUICK], cloud=True, settings=soon) as house:
        house.workers[0].full = True  # it answers busy, which its report does not say
        for stream in (False, True):
            answer = await house.ask(stream=stream)
            assert answer.status == 200
            # it waited for a report that says otherwise, as long as somebody who waits is given
            assert (answer.header("route"), answer.header("reason")) == (CLOUD, "queue_late")
            assert int(answer.header("waited-ms") or 0) > 0
            # once busy, it is not asked again before it has reported
            assert answer.header("attempts") in ("1", "2")
        rows = await house.settled()
        assert [row.target for row in rows] == [CLOUD.removeprefix("cloud:")] * 2
        assert all(row.waited_ms > 0 for row in rows)


@pytest.mark.parametrize("fault", [{"cut_after": 3}, {"error_after": 3}, {"garbage_after": 3}])
async def test_a_stream_that_breaks_ends_with_an_error_and_never_with_done(
    books_url: str, fault: dict[str, Any]
) -> None:
    async with rig(books_url, cloud=True) as house:
        await house.fault(fault, next=1)
        answer = await house.ask(model="cloud/glm-4.6v", stream=True)
        assert answer.status == 200
        assert not answer.ended_well
        assert b"[DONE]" not in answer.body
        assert answer.chunks[-1]["error"]["code"]
        (row,) = await house.settled()
        assert (row.state, row.outcome) == (RowState.UNRECONCILED, Outcome.BROKEN)
        assert row.posted_nano == row.held_nano  # what it really cost only the bill can tell


@pytest.mark.parametrize("model", ["local/glm-4.6v", "cloud/glm-4.6v"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_a_client_that_leaves_is_booked_and_its_upstream_closed(
    books_url: str, model: str, stream: bool
) -> None:
    endless = ServerOptions(chunks=10_000, pace_ms=20) if stream else ServerOptions(first_ms=60_000)
    async with rig(books_url, workers=[endless], cloud=True) as house:
        await house.fault({"token_ms": 50, "answer_tokens": 5_000, "first_ms": 300}, rate=1.0)
        body = {"model": model, "stream": stream, "max_tokens": 8_000, "messages": asking()}
        cloud = house.cloud
        assert cloud is not None
        await house.leave(lambda: bool(house.workers[0].running or cloud.books.running), **body)
        (row,) = await house.settled()
        assert row.outcome == Outcome.CLIENT_GONE
        assert row.posted_nano > 0
        if row.site is Site.LOCAL:
            await until(lambda: house.workers[0].running == 0)
        else:
            assert row.state == RowState.UNRECONCILED


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_a_row_says_who_answered_at_which_rate_and_what_pictures_counted(
    books_url: str, stream: bool
) -> None:
    """Expected by our reading of Ark's rule, counted by the emulator's."""
    async with rig(books_url, cloud=True) as house:
        body = {"model": "cloud/glm-4.6v", "messages": asking(picture(640, 480)), "stream": stream}
        assert (await house.ask(**body)).status == 200
        (row,) = await house.settled()
        assert (row.served_model, row.service_tier) == (row.target, "default")
        assert row.image_tokens == row.image_tokens_expected > 0
        (drift,) = await house.admin("GET", "/admin/drift")
        assert (drift["answers"], drift["alarming"]) == (1, False)


async def test_the_admin_port_says_how_much_of_the_pool_was_used(books_url: str) -> None:
    async with rig(books_url) as house:
        await house.ready_worker()
        assert (await house.ask(model="local/glm-4.6v")).status == 200
        (row,) = await house.settled()
        found = await house.admin("GET", "/admin/utilisation")
        assert found["total"]["carried_nano"] == row.posted_nano
        assert 0 < found["total"]["utilisation"] <= 1
        assert found["lines"][0]["target"] == row.target


async def test_rows_can_be_read_line_by_line(books_url: str) -> None:
    async with rig(books_url) as house:
        await house.ready_worker()
        for _ in range(3):
            await house.ask(model="local/glm-4.6v")
        rows = await house.settled()
        headers = {"Authorization": "Bearer " + ADMIN_TOKEN}
        url = f"{house.admin_url}/admin/rows?form=lines"
        async with house.http.get(url, headers=headers) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            lines = (await answer.read()).splitlines()
        assert [msgspec.json.decode(line, type=Row) for line in lines] == rows


async def test_a_worker_that_vanishes_is_replaced_by_the_next_attempt(books_url: str) -> None:
    async with rig(books_url, workers=[QUICK, QUICK]) as house:
        await house.workers[0].kill()
        answers = await asyncio.gather(*(house.ask() for _ in range(20)))
        assert {answer.status for answer in answers} == {200}
        assert {answer.header("route") for answer in answers} == {"local:w2"}


async def test_who_finds_no_free_slot_waits_for_one_and_is_told_how_long(books_url: str) -> None:
    async with rig(books_url, workers=[NARROW, NARROW]) as house:
        answers = await asyncio.gather(*(house.ask(stream=n % 2 == 0) for n in range(8)))
        assert {answer.status for answer in answers} == {200}
        assert {answer.header("attempts") for answer in answers} == {"1"}
        rows = await house.settled()
        assert sum(row.waited_ms == 0 for row in rows) == 2  # as many as there are slots
        assert max(row.waited_ms for row in rows) > 600  # three turns of 300 ms
        assert {row.target for row in rows} == {"w1", "w2"}


async def test_a_worker_killed_before_its_answer_begins_is_replaced_and_charged_once(
    books_url: str,
) -> None:
    slow = ServerOptions(chunks=5, first_ms=400)
    async with rig(books_url, workers=[slow, slow]) as house:
        asking_all = [spawn(house.ask(stream=n % 2 == 0), name="ask") for n in range(6)]
        await until(lambda: all(worker.running for worker in house.workers))
        await house.workers[0].kill()
        answers = await asyncio.gather(*asking_all)
        assert {answer.status for answer in answers} == {200}
        assert {answer.header("route") for answer in answers} == {"local:w2"}
        assert max(int(answer.header("attempts") or 0) for answer in answers) == 2
        rows = await house.settled()
        assert len(rows) == 6  # what the dead one was asked for is charged to nobody
        assert all(row.final for row in rows)


async def test_the_only_worker_is_waited_for_when_it_is_started_again(books_url: str) -> None:
    slow = ServerOptions(chunks=5, first_ms=400, port=free_port())
    async with rig(books_url, workers=[slow]) as house:
        asking_all = [spawn(house.ask(stream=n % 2 == 0), name="ask") for n in range(4)]
        await until(lambda: house.workers[0].running == 4)
        await house.workers[0].kill()
        late = spawn(house.ask(), name="late")  # comes while there is no worker at all
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in [*asking_all, late])
        async with ScriptedServer(slow):
            answers = await asyncio.gather(*asking_all, late)
        assert {answer.status for answer in answers} == {200}
        assert all(int(answer.header("waited-ms") or 0) > 100 for answer in answers)
        assert len(await house.settled()) == 5


async def test_interactive_goes_before_batch_in_the_line(books_url: str) -> None:
    endless = msgspec.structs.replace(NARROW, first_ms=600_000)
    async with rig(books_url, workers=[endless]) as house:

        async def in_line(**wanted: int) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    line = (await house.admin("GET", "/admin/pool"))["line"]
                    if wanted.items() <= line.items():
                        return

        async def waited_ms(headers: dict[str, str] | None = None) -> int:
            return int((await house.ask(headers)).header("waited-ms") or 0)

        batch = {"Authorization": f"Bearer {house.token(slo=SloClass.BATCH)}"}
        first = spawn(house.ask(), name="first")
        await until(lambda: house.workers[0].running == 1)
        house.workers[0].options = NARROW
        later = asyncio.gather(*(waited_ms(batch) for _ in range(2)))
        await in_line(batch=2)
        sooner = asyncio.gather(*(waited_ms() for _ in range(2)))
        await in_line(batch=2, interactive=2)
        first.cancel()  # its client leaves, so the only slot is free
        assert max(await sooner) < min(await later)


async def test_no_room_anywhere_is_a_503_that_says_when_to_come_back(books_url: str) -> None:
    impatient = {"pool.wait_interactive_s": 0.3}
    async with rig(books_url, workers=[QUICK], cloud=True, settings=impatient) as house:
        await house.workers[0].kill()
        await house.fault({"code": "ServerOverloaded"}, rate=1.0)
        await house.ask()  # learns that the cloud is overloaded
        answer = await house.ask()
        assert answer.status in (429, 503)
        assert int(answer.headers["retry-after"]) >= 1


async def test_refusals_name_what_is_wrong(books_url: str) -> None:
    async with rig(books_url) as house:
        for body, param in (
            ({"temperature": 9}, "temperature"),
            ({"messages": []}, "messages"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ):
            answer = await house.ask(**body)
            assert (answer.status, answer.json["error"]["param"]) == (400, param)
        remote = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
        answer = await house.ask(messages=asking(remote))
        assert (answer.status, answer.code) == (400, "unsupported_request")
        broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGFsbG8="}}
        assert (await house.ask(messages=asking(broken))).status == 400
        assert (await house.ask({})).status == 401
        assert (await house.ask({"Authorization": "Bearer x"})).code == "invalid_api_key"
        limited = {"Authorization": f"Bearer {house.token(models=['other'])}"}
        assert (await house.ask(limited)).code == "model_not_allowed"
        for path, status in (("/nothing", 404), ("/v1/chat/completions", 405)):
            async with house.http.get(house.url + path) as response:
                assert response.status == status
                assert "error" in await response.json()
        assert await house.rows() == []


async def test_a_floor_in_the_token_cannot_be_lowered(books_url: str) -> None:
    async with rig(books_url, cloud=True) as house:
        token = house.token(sensitivity=Sensitivity.SENSITIVE)
        headers = {"Authorization": f"Bearer {token}", "x-yuzui-sensitivity": "public"}
        answer = await house.ask(headers, metadata={"sensitivity": "public"})
        assert (answer.header("reason"), answer.header("sensitivity")) == (
            "sensitive_pinned",
            "sensitive",
        )


async def test_explain_report_and_pool_on_the_admin_port(books_url: str) -> None:
    async with rig(books_url, cloud=True) as house:
        await house.ask()
        await house.ask(model="cloud/glm-4.6v")
        await house.settled()
        report = await house.admin("GET", "/admin/report?by=backend")
        assert [line["group"] for line in report["lines"]] == [CLOUD, "local:w1"]
        assert report["total"]["requests"] == 2
        why = await house.admin("POST", "/admin/explain", {"sensitivity": "secret"})
        assert why["why"]["reason"] == "sensitive_pinned"
        # nowhere else to go: should the worker die under it, it waits for its return
        assert [a["target"] for a in why["attempts"]] == ["w1"] * 3
        pool = await house.admin("GET", "/admin/pool")
        assert pool["workers"][0]["health"] == "up"
        async with house.http.get(f"{house.admin_url}/admin/till") as response:
            assert response.status == 401  # without the admin token nothing is told
        async with house.http.get(f"{house.url}/admin/till") as response:
            assert response.status == 404  # and nothing of it is on the public port


async def test_a_stop_waits_for_what_runs(books_url: str) -> None:
    async with rig(books_url, workers=[ServerOptions(chunks=20, pace_ms=50)]) as house:
        running = spawn(house.ask(stream=True), name="asking")
        await until(lambda: house.workers[0].running > 0)
        house.stop.set()
        answer = await running
        assert answer.ended_well
        with pytest.raises(aiohttp.ClientConnectionError):
            await house.ask()


async def test_while_the_cloud_is_frozen_its_requests_go_where_no_bill_comes_from(
    own_server: Callable[..., RealServer],
) -> None:
    """A full pool sends a request to the cloud; with the books in doubt it waits for a worker."""
    server = own_server()
    settings = {"limits.ttft_interactive_s": 0.001}
    async with rig(server.url, workers=[NARROW], cloud=True, settings=settings) as house:
        first = spawn(house.ask(model="local/glm-4.6v"), name="first")
        await until(lambda: house.workers[0].running == 1)
        assert (await house.ask()).header("route") == CLOUD  # the positive control
        with server.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")  # such a server may forget budgets
        async with asyncio.timeout(30):
            while (await house.ask(model="cloud/glm-4.6v")).status == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await first
        sent = len(await house.cloud_requests())
        busy = [spawn(house.ask(model="local/glm-4.6v"), name="busy") for _ in range(2)]
        await until(lambda: house.workers[0].running == 1)
        answer = await house.ask()
        assert (answer.status, answer.header("route")) == (200, "local:w1")
        assert answer.header("attempts") == "1"
        assert {(await one).status for one in busy} == {200}
        refused = await house.ask(model="cloud/glm-4.6v")
        assert (refused.status, refused.code) == (503, "ledger_unavailable")
        assert refused.header("attempts") == "0"
        assert len(await house.cloud_requests()) == sent
