"""Emulators and a backend that end with the test."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from backends.ark.backend import ArkBackend
from backends.ark.emulator.server import Emulator
from backends.egress import Egress
from tests.backends.ark.kit import KEY, NOW_S, fast

Start = Callable[..., Awaitable[Emulator]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts emulators: `await start(rpm=..., clock=...)`, settings by name."""
    running: list[Emulator] = []

    async def one(clock: Callable[[], float] = time.time, **changes: Any) -> Emulator:
        emulator = Emulator(fast(**changes), clock)
        await emulator.start()
        running.append(emulator)
        return emulator

    yield one
    for emulator in running:
        await emulator.close()


@pytest.fixture
async def emulator(start: Start) -> Emulator:
    return await start()


@pytest.fixture
async def ark(emulator: Emulator) -> AsyncIterator[ArkBackend]:
    """A backend whose cloud is the emulator of this test."""
    egress = Egress(allowed=[emulator.url])
    yield ArkBackend(egress, emulator.url, KEY, wall_clock=lambda: NOW_S)
    await egress.close()
