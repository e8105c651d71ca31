from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import structlog

from gateway import logs
from gateway.config.read import Secret


class Size(msgspec.Struct):
    width: int
    token: str


TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJ0ZW5hbnQiOiJhIn0.c2lnbmF0dXJl"


@pytest.fixture
def out() -> Iterator[io.BytesIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.BytesIO()
    logs.setup("info", text_chars_max=100, stream=stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def lines(out: io.BytesIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_both_kinds_of_logger_write_one_json_object_a_line(out: io.BytesIO) -> None:
    structlog.get_logger().info("started", port=8080, ratio=0.5)
    logging.getLogger("gateway.x").warning("worker %s\nis slow", "w1", extra={"ms": 7})
    first, second = lines(out)
    assert first["event"] == "started"
    assert first["port"] == 8080
    assert str(first["ts"]).endswith("Z")
    assert second["event"] == "worker w1\nis slow"
    assert second["level"] == "warning"
    assert second["logger"] == "gateway.x"
    assert second["ms"] == 7


def test_the_level_counts_for_both(out: io.BytesIO) -> None:
    structlog.get_logger().debug("no")
    logging.getLogger("gateway.x").debug("no")
    assert lines(out) == []


@pytest.mark.parametrize(
    "key",
    ["Authorization", "api_key", "token", "messages", "X-Api-Key", "db_password", "image_url"],
)
def test_what_stands_under_a_secret_key_is_masked_at_any_depth(out: io.BytesIO, key: str) -> None:
    structlog.get_logger().info("x", **{key: "hunter2"}, deep={"a": [{key: ["hunter2"]}]})
    assert b"hunter2" not in out.getvalue()
    assert logs.MASK in out.getvalue().decode()


@pytest.mark.parametrize(
    "text",
    [
        f"refused {TOKEN}",
        "x" * 90 + TOKEN,
        "Bearer hunter2hunter2",
        "key sk-hunter2hunter2hunter2",
        "redis://user:hunter2@10.0.0.1:6379/0",
        "data:image/png;base64,hunter2hunter2",
    ],
)
def test_a_secret_inside_a_text_is_masked(out: io.BytesIO, text: str) -> None:
    structlog.get_logger().info(text, note=text)
    logging.getLogger("lib").warning("said: %s", text)
    shown = out.getvalue()
    assert b"hunter2" not in shown
    assert b"eyJ" not in shown
    assert len(lines(out)) == 2


def test_counts_of_tokens_are_figures_not_secrets(out: io.BytesIO) -> None:
    structlog.get_logger().info("done", prompt_tokens=12, output_tokens_max=5)
    assert lines(out)[0]["prompt_tokens"] == 12


def test_long_texts_bytes_and_unknown_objects_are_not_printed(out: io.BytesIO) -> None:
    structlog.get_logger().info(
        "x",
        long="a" * 5000,
        raw=b"hunter2",
        thing=Secret("hunter2"),
        size=Size(width=3, token="hunter2"),
        file=Path("/tmp/x"),
        many=list(range(1000)),
    )
    (line,) = lines(out)
    assert b"hunter2" not in out.getvalue()
    assert line["long"] == "a" * 100 + "... (5000 characters)"
    assert line["raw"] == "<7 bytes>"
    assert line["thing"] == "<Secret>"
    assert line["size"] == {"width": 3, "token": logs.MASK}
    assert len(line["many"]) == logs.ITEMS_MAX  # type: ignore[arg-type]


def test_a_foreign_exception_gives_its_type_and_place_but_not_its_text(out: io.BytesIO) -> None:
    try:
        raise ValueError("cannot parse: my private prompt")
    except ValueError:
        logging.getLogger("gateway.x").exception("failed")
        structlog.get_logger().exception("failed")
    for line in lines(out):
        assert line["error"] == "ValueError"
        assert "test_logs.py:" in str(line["error_at"])
    assert b"private prompt" not in out.getvalue()


def test_an_error_of_ours_or_of_the_system_gives_its_text(out: io.BytesIO) -> None:
    from gateway.keys import KeyUnusable

    for error in (KeyUnusable("key 'a' is too short"), ConnectionRefusedError(111, "refused")):
        logging.getLogger("gateway.x").error("failed", exc_info=error)
    assert [line["error_text"] for line in lines(out)] == ["key 'a' is too short", "refused"]


def test_nothing_that_is_logged_can_raise(out: io.BytesIO) -> None:
    structlog.get_logger().info("x", big=2**80)
    structlog.get_logger().info("x", half="\udc80")
    bridge = next(h for h in logging.getLogger().handlers if isinstance(h, logs._Bridge))
    bridge.handle(logging.makeLogRecord({"msg": "%s and %s", "args": ("one",)}))
    loop: list[object] = []
    loop.append(loop)
    structlog.get_logger().info("x", loop=loop, nan=float("nan"))
    assert len(lines(out)) == 4
    out.close()
    structlog.get_logger().info("nobody reads this")
