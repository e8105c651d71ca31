"""Loading gives way, and nothing of it is left when the worker serves."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backends.glm.priority import BREATH_S, GIVING_WAY, Breath, gently

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sched(7)")


def nice_of(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def nice_here() -> int:
    return nice_of(threading.get_native_id())


def test_work_runs_at_a_lower_priority_and_so_does_what_it_starts() -> None:
    before = nice_here()

    def work() -> tuple[int, int]:
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(nice_here()))
        thread.start()
        thread.join()
        return nice_here(), seen[0]

    assert gently(work) == (GIVING_WAY, GIVING_WAY)
    assert nice_here() == before  # the caller's own, and of the threads that it starts
    assert gently(lambda: gently(nice_here)) == GIVING_WAY


def test_what_goes_wrong_is_the_callers_to_hear() -> None:
    with pytest.raises(ZeroDivisionError):
        gently(lambda: 1 // 0)


# In a process of its own: its session's value is looked at before, between and after.
SESSION = """
from pathlib import Path
from backends.glm import priority
file = Path("/proc/self/autogroup")
def look():
    print(file.read_text().split()[-1])
look()
priority.give_way()
look()
priority.take_part()
look()
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="no autogroups here")
@pytest.mark.parametrize(("own", "seen"), [(True, ["0", "10", "0"]), (False, ["0", "0", "0"])])
def test_a_session_of_its_own_gives_way_and_takes_part_again(own: bool, seen: list[str]) -> None:
    command = [sys.executable, "-c", SESSION]
    if not own:  # a shell leads the session, and its other jobs shall not become slow
        command = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, SESSION]
    done = subprocess.run(
        command, start_new_session=True, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == seen


def test_it_takes_breath_between_imports_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    before = list(sys.meta_path)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with Breath():
        assert importlib.import_module("colorsys").rgb_to_hls  # found by those behind it
    assert slept == [BREATH_S]
    assert sys.meta_path == before
    monkeypatch.delitem(sys.modules, "colorsys")
    importlib.import_module("colorsys")
    assert slept == [BREATH_S]
