from __future__ import annotations

import traceback

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from backends.ark.backend import ArkBackend
from backends.ark.emulator.server import Emulator
from backends.ark.models import model_of
from backends.base import Backend, Billed, Event, Failure, Kind, Timeouts
from backends.chunks import read_body
from backends.egress import Egress
from policies.types import CloudPermit, Sensitivity
from tests.backends.ark.conftest import Start
from tests.backends.ark.kit import (
    GLM_5_3,
    KEY,
    LIMITS,
    SEED_2_1,
    admin,
    call,
    data_url,
    stream_of,
)
from tests.backends.servers import until

QUICK = replace(LIMITS, idle_s=0.3)


async def inject(emulator: Emulator, **fault: object) -> None:
    await admin(emulator.url, "faults", "POST", {"fault": fault, "next": 1})


async def fails(ark: ArkBackend, timeouts: Timeouts = LIMITS) -> Failure:
    with pytest.raises(Failure) as caught:
        await stream_of(ark, call(stream=True, timeouts=timeouts))
    return caught.value


async def test_a_plain_answer_and_its_usage(ark: ArkBackend, emulator: Emulator) -> None:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": data_url(1280, 960)}},
    ]
    asked = {"messages": [{"role": "user", "content": content}], "thinking": {"type": "enabled"}}
    reply = await ark.open(call(SEED_2_1, **asked))
    body, usage = await reply.body()
    await reply.close()
    assert b"1 picture(s) (1280x960)" in body
    charged = emulator.books.charged.rows[0]
    assert usage is not None
    assert usage.image_tokens == 1280
    assert (usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens) == (
        charged.prompt_tokens,
        charged.completion_tokens,
        charged.reasoning_tokens,
    )
    assert usage.reasoning_tokens == 96
    assert usage.slot_ms == 0
    assert charged.client_request_id == "yz-1"


async def test_a_stream_is_relayed_byte_by_byte(ark: ArkBackend, emulator: Emulator) -> None:
    events = await stream_of(ark, call(GLM_5_3, stream=True, limit=200))
    assert events[-1].done
    assert [event.finish_reason for event in events if event.finish_reason] == ["length"]
    usage = events[-2].usage
    assert usage is not None
    assert events[-2].choices_empty
    assert usage.completion_tokens == emulator.books.charged.rows[0].completion_tokens == 200
    assert all(event.raw.endswith(b"\n\n") for event in events)
    assert sum(event.has_delta for event in events) == 200


async def test_cached_tokens_are_read(ark: ArkBackend) -> None:
    long = [{"role": "user", "content": "the same long words " * 600}]
    first = (await stream_of(ark, call(messages=long, stream=True)))[-2].usage
    second = (await stream_of(ark, call(messages=long, stream=True)))[-2].usage
    assert first is not None
    assert second is not None
    assert first.cached_tokens == 0
    assert 1024 <= second.cached_tokens < second.prompt_tokens


@pytest.mark.parametrize(
    "permit",
    [
        None,
        CloudPermit(request_id="yz-2", level=Sensitivity.PUBLIC),
        CloudPermit(request_id="yz-1", level=Sensitivity.SENSITIVE),
        "yes",
        {"request_id": "yz-1"},
    ],
)
async def test_without_its_permit_nothing_leaves(
    ark: ArkBackend, emulator: Emulator, permit: object
) -> None:
    sent = msgspec.structs.replace(call(), permit=permit)
    with pytest.raises(PermissionError):
        await ark.open(sent)
    assert emulator.books.received.count == 0


async def test_a_request_the_model_cannot_serve_is_not_sent(
    ark: ArkBackend, emulator: Emulator
) -> None:
    with pytest.raises(Failure):
        await ark.open(call(n=2))
    assert emulator.books.received.count == 0


async def test_the_key_is_nowhere_to_be_seen(emulator: Emulator) -> None:
    egress = Egress(allowed=[emulator.url])
    ark = ArkBackend(egress, emulator.url, KEY)
    await inject(emulator, code="AuthenticationError", message=f"the key {KEY} is not valid")
    try:
        await ark.open(call())
    except Failure as failure:
        seen = repr(failure) + failure.message + "".join(traceback.format_exception(failure))
    reply = await ark.open(call())
    seen += repr(ark) + str(ark) + repr(reply) + repr(emulator.books.received.rows)
    seen += str(await admin(emulator.url, "requests")) + str(await admin(emulator.url, "usage"))
    await reply.close()
    await egress.close()
    assert KEY not in seen
    assert KEY[:12] not in seen


def test_an_empty_key_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="empty"):
        ArkBackend(Egress(allowed=[]), "https://ark.example.com/api/v3", "")
    with pytest.raises(KeyError):
        ArkBackend(Egress(allowed=[]), "https://a.example.com", KEY, families={"ep-1": "glm-9"})


async def test_the_operator_says_what_an_endpoint_is(start: Start) -> None:
    emulator = await start(endpoints={"ep-1": {"model": GLM_5_3}})
    egress = Egress(allowed=[emulator.url])
    ark: Backend = ArkBackend(egress, emulator.url, KEY, families={"ep-1": "glm-5.3-flash"})
    content = [{"type": "image_url", "image_url": {"url": data_url(100, 100)}}]
    reply = await ark.open(call("ep-1", messages=[{"role": "user", "content": content}]))
    body, _ = await reply.body()
    await reply.close()
    await egress.close()
    assert GLM_5_3.encode() in body
    assert emulator.books.charged.rows[0].endpoint == "ep-1"


async def test_a_user_is_led_to_his_cache_by_a_name_that_tells_nothing(ark: ArkBackend) -> None:
    with_user = ark._headers(call(user="ada@example.com"), model_of(SEED_2_1))
    assert "ada" not in str(with_user)
    assert len(with_user["x-prompt-cache-id"]) == 32
    assert "x-prompt-cache-id" not in ark._headers(call(), model_of(SEED_2_1))
    assert "x-prompt-cache-id" not in ark._headers(call(user="ada"), model_of(GLM_5_3))


@pytest.mark.parametrize(
    "fault",
    [
        {"cut_after": 3},
        {"cut_after": 0},
        {"no_finish": True, "no_done": True},
        {"no_finish": True},
        {"garbage_after": 2},
    ],
    ids=str,
)
async def test_half_a_stream_is_broken_and_perhaps_billed(
    ark: ArkBackend, emulator: Emulator, fault: dict[str, object]
) -> None:
    await inject(emulator, **fault)
    failure = await fails(ark)
    assert (failure.kind, failure.billed) == (Kind.BROKEN, Billed.MAYBE)


async def test_events_before_a_break_are_delivered(ark: ArkBackend, emulator: Emulator) -> None:
    await inject(emulator, cut_after=3)
    reply = await ark.open(call(stream=True, thinking={"type": "disabled"}))
    seen: list[Event] = []

    async def read() -> None:
        async for batch in reply.events():
            seen.extend(batch)

    with pytest.raises(Failure):
        await read()
    await reply.close()
    assert len(seen) == 3
    assert not any(event.done for event in seen)


async def test_a_stream_that_only_lacks_its_last_word_is_whole(
    ark: ArkBackend, emulator: Emulator
) -> None:
    await inject(emulator, no_done=True)
    events = await stream_of(ark, call(stream=True))
    assert not events[-1].done
    assert events[-1].usage is not None


async def test_silence_in_mid_stream(ark: ArkBackend, emulator: Emulator) -> None:
    await inject(emulator, stall_after=2)
    failure = await fails(ark, QUICK)
    assert (failure.kind, failure.billed) == (Kind.TIMEOUT_IDLE, Billed.MAYBE)
    await until(lambda: emulator.books.running == 0)
    charged = emulator.books.charged.rows[0]
    assert (charged.state, charged.completion_tokens) == ("client_left", 2)


async def test_a_slow_first_token(ark: ArkBackend, emulator: Emulator) -> None:
    await inject(emulator, first_ms=60_000)
    failure = await fails(ark, replace(QUICK, first_s=0.3))
    assert failure.kind is Kind.TIMEOUT_FIRST


async def test_a_dropped_connection(ark: ArkBackend, emulator: Emulator) -> None:
    await inject(emulator, drop=True)
    failure = await fails(ark)
    assert (failure.kind, failure.billed) == (Kind.BROKEN, Billed.MAYBE)


async def test_an_error_inside_of_the_stream(ark: ArkBackend, emulator: Emulator) -> None:
    await inject(emulator, error_after=2, code="OutputTextSensitiveContentDetected")
    failure = await fails(ark)
    assert (failure.kind, failure.billed) == (Kind.CONTENT_FILTER, Billed.MAYBE)
    assert failure.code == "OutputTextSensitiveContentDetected"
    assert emulator.books.received.rows[0].server_id in failure.message


async def test_a_filtered_answer_passes(ark: ArkBackend, emulator: Emulator) -> None:
    await inject(emulator, moderation="violence")
    events = await stream_of(ark, call(stream=True))
    last = next(event for event in events if event.finish_reason)
    assert last.finish_reason == "content_filter"
    assert b'"moderation_hit_type":"violence"' in last.raw


async def test_a_plain_answer_without_usage(ark: ArkBackend, emulator: Emulator) -> None:
    await inject(emulator, no_usage=True)
    reply = await ark.open(call())
    _, usage = await reply.body()
    await reply.close()
    assert usage is None


_figure = st.one_of(st.integers(), st.floats(), st.none(), st.text(max_size=3), st.booleans())


@settings(max_examples=50)
@given(
    usage=st.fixed_dictionaries(
        {"prompt_tokens": _figure, "completion_tokens": _figure},
        optional={
            "prompt_tokens_details": st.one_of(
                st.none(),
                st.fixed_dictionaries({"cached_tokens": _figure, "image_tokens": _figure}),
            ),
            "completion_tokens_details": st.fixed_dictionaries({"reasoning_tokens": _figure}),
        },
    )
)
def test_hostile_usage_is_clamped_or_not_there(usage: dict[str, object]) -> None:
    """No server: what the reader makes of the figures is what the backend reports."""
    try:
        body = msgspec.json.encode({"choices": [{"finish_reason": "stop"}], "usage": usage})
    except (OverflowError, ValueError):
        return
    found, _ = read_body(body)
    if found is None:
        return
    assert 0 <= found.cached_tokens <= found.prompt_tokens
    assert 0 <= found.image_tokens <= found.prompt_tokens
    assert 0 <= found.reasoning_tokens <= found.completion_tokens


async def test_a_client_that_leaves_stops_the_cloud_and_pays_for_what_it_got(
    ark: ArkBackend, emulator: Emulator
) -> None:
    await inject(emulator, token_ms=20, answer_tokens=500)
    reply = await ark.open(call(stream=True, thinking={"type": "disabled"}))
    got = 0
    async for batch in reply.events():
        got += len(batch)
        if got >= 5:
            break
    await reply.close()
    await until(lambda: emulator.books.running == 0)
    charged = emulator.books.charged.rows[0]
    assert charged.state == "client_left"
    assert 2 <= charged.completion_tokens < 500
