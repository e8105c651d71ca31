"""In processes of their own: what one test does to the allocator stays for all."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.glm import heap

# Blocks below glibc's largest threshold, with something small behind each, so that no end of a heap
# is free by itself.
PROGRAM = """
import gc, json
from backends.glm import heap

def mb():
    status = open("/proc/self/status").read()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024

keeps = heap.keep_freed() if {keep} else None
before = mb()
blocks = [(bytearray(8 << 20), bytearray(600)) for _ in range(20)]
small = [pair[1] for pair in blocks]
full = mb() - before
del blocks
freed = mb() - before
heap.give_back()
print(json.dumps(dict(keeps=keeps, full=full, freed=freed, rest=mb() - before)))
"""


def measured(*, keep: bool) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)], check=True, capture_output=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not Path("/lib/x86_64-linux-gnu/libc.so.6").exists(), reason="needs glibc")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    found = measured(keep=True)
    assert found["keeps"] is True
    assert found["full"] > 150
    assert found["freed"] > 150
    assert found["rest"] < 20
    usual = measured(keep=False)  # the control: glibc by itself
    assert usual["freed"] < 100


def test_what_is_settled_is_not_looked_at_again() -> None:
    already = gc.get_freeze_count()
    try:
        heap.settle()
        assert gc.get_freeze_count() > already + 10_000
    finally:
        gc.unfreeze()


COLLECTOR = """
import gc
from backends.glm import heap

libraries = [[] for _ in range(800_000)]
heap.settle()
before = gc.get_stats()[2]["collections"]
made = [[] for _ in range(120_000)]  # a seventh of what is frozen
print(gc.get_stats()[2]["collections"] - before)
"""


def test_the_collector_does_not_wait_for_a_quarter_of_what_is_frozen() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECTOR], check=True, capture_output=True)
    assert int(done.stdout) >= 1


def test_a_library_without_the_function_is_no_error() -> None:
    assert heap._call("no_such_function_anywhere", 1) == 0


def test_nothing_is_looked_for_while_it_is_filled_and_again_after_it() -> None:
    assert gc.isenabled()
    with heap.filling():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        filled_badly()
    assert gc.isenabled()


def filled_badly() -> None:
    with heap.filling():
        _ = 1 // 0
