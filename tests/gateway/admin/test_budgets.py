"""The budget paths of the admin port, through a whole gateway."""

from __future__ import annotations

from typing import Any

from tests.gateway.rig import ADMIN_TOKEN, Rig, rig

LABELS = {"budgets.metadata_labels": ["project"]}


async def refused(
    house: Rig, method: str, path: str, body: object = None
) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    url = house.admin_url + path
    async with house.http.request(method, url, json=body, headers=headers) as response:
        return response.status, (await response.json())["error"]


async def test_a_budget_is_made_changed_frozen_reset_and_removed_and_the_trail_has_it_all(
    books_url: str,
) -> None:
    named = {"scope": "label:project=apollo", "period": "week"}
    async with rig(books_url, settings=LABELS) as house:
        options = {"soft": [{"at_percent": 80, "steer": "prefer_local"}], "alerts": [50]}
        await house.admin(
            "PUT", "/admin/budgets",
            {**named, "limit_nano": 10**9, "start_day": 7, "options": options},
        )  # fmt: skip
        (made,) = await house.admin("PUT", "/admin/budgets", {**named, "limit_nano": 2 * 10**9})
        assert (made["limit_nano"], made["start_day"], made["zone"]) == (
            2 * 10**9, 7, "Asia/Shanghai",
        )  # fmt: skip
        assert made["options"]["alerts"] == [50]  # what was not named stays

        labelled = {"metadata": {"project": "apollo"}}
        assert (await house.ask(**labelled)).status == 200
        (used,) = await house.admin("GET", "/admin/budgets")
        assert used["posted_nano"] > 0
        rows = await house.settled()
        assert rows[0].labels == ("project=apollo",)

        await house.admin("POST", "/admin/budgets/freeze", named)
        frozen = await house.ask(**labelled)
        assert (frozen.status, frozen.code) == (429, "insufficient_quota")
        assert "label:project=apollo" in frozen.json["error"]["message"]
        assert "frozen" in frozen.json["error"]["message"]
        assert (await house.ask()).status == 200  # without the label: none of its business
        assert (await house.ask(metadata={"project": "a b"})).status == 400
        await house.admin("POST", "/admin/budgets/unfreeze", named)
        await house.admin("POST", "/admin/budgets/raise", {**named, "add_nano": 5})
        (fresh,) = await house.admin("POST", "/admin/budgets/reset", named)
        assert (fresh["posted_nano"], fresh["limit_nano"]) == (0, 2 * 10**9 + 5)
        query = "?scope=label:project%3Dapollo&period=week"
        assert await house.admin("DELETE", f"/admin/budgets{query}") == []
        trail = await house.admin("GET", f"/admin/budgets/audit{query}")
        assert [entry["act"] for entry in trail] == [
            "set", "set", "freeze", "unfreeze", "raise", "reset", "delete",
        ]  # fmt: skip
        assert {entry["who"] for entry in trail} == {"admin"}
        assert trail[5]["posted_nano"] == used["posted_nano"]


async def test_what_cannot_be_done_is_said(books_url: str) -> None:
    async with rig(books_url) as house:
        good = {"scope": "tenant:t", "limit_nano": 1}
        put = "PUT", "/admin/budgets"
        for body, word in (
            ({**good, "period": "year"}, "minute, hour, day, week, month, total"),
            ({**good, "scope": "t"}, "kind:name"),
            ({**good, "period": "day", "start_day": 2}, "day 1 to 1"),
            ({**good, "start_day": 0}, "day 1 to 28, not 0"),
            ({**good, "limit_nano": -1}, "a limit is"),
            ({**good, "zone": "Mars"}, "time zone"),
            ({**good, "options": {"pace": True}}, "at least one"),
            ({**good, "options": {"soft": [{"at_percent": 1, "steer": "sing"}]}}, "sing"),
            ({**good, "opions": {}}, "opions"),
        ):
            status, error = await refused(house, *put, body)
            assert status == 400
            assert word in error["message"]
        for act in ("raise", "freeze", "reset"):
            body = {"scope": "tenant:t", "add_nano": 1}
            status, error = await refused(house, "POST", f"/admin/budgets/{act}", body)
            assert (status, error["code"]) == (404, "not_found")
        assert (await refused(house, "POST", "/admin/budgets/sing", {}))[0] == 404
        await house.admin(*put, good)
        no_more = {"scope": "tenant:t", "add_nano": 0}
        assert (await refused(house, "POST", "/admin/budgets/raise", no_more))[0] == 400
