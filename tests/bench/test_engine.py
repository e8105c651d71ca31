"""What the benchmark of the worker makes of its measurements."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.bench.engine import Figures, number_type, ratios

FLOAT32 = {"nano": "float32", "mid": "float32"}


def _figures(per_s: float, ttft_s: float, texts: list[str]) -> Figures:
    return Figures(per_s=[per_s], ttft_s=[ttft_s], tpot_s=[0.01], texts=texts)


def test_ratios_are_over_the_reference_and_the_worse_checkpoint_stands_for_both() -> None:
    found = ratios(
        {
            ("nano", "ours", 1): _figures(400, 0.1, ["a", "b"]),
            ("nano", "serve", 1): _figures(200, 0.2, ["a", "b"]),
            ("nano", "generate", 1): _figures(100, 0, ["a", "b"]),
            ("mid", "ours", 1): _figures(30, 1, ["a", "x"]),
            ("mid", "generate", 1): _figures(20, 0, ["a", "b"]),
            ("mid", "ours", 32): _figures(90, 3, ["a"]),
            ("mid", "serve", 32): _figures(10, 30, ["a"]),
        },
        FLOAT32,
    )
    assert found["nano_ratio_1"] == 2
    assert found["mid_ratio_32"] == 9
    assert found["single_ratio"] == 1.5
    assert found["ttft_p99_ratio_32"] == 0.1
    assert (found["nano_1_equal"], found["mid_1_equal"]) == (1, 0.5)


def test_what_was_not_measured_has_no_ratio() -> None:
    found = ratios({("nano", "ours", 8): _figures(400, 0.1, ["a"])}, FLOAT32)
    assert found == {"nano_tokens_per_s_8": 400}


def test_in_bfloat16_nothing_is_said_about_the_answers_of_random_weights() -> None:
    measured = {
        (model, side, 8): _figures(100, 0.1, ["a"])
        for model in ("nano", "mid")
        for side in ("ours", "serve")
    }
    found = ratios(measured, {"nano": "float32", "mid": "bfloat16"})
    assert found["nano_8_equal"] == found["mid_ratio_8"] == 1
    assert "mid_8_equal" not in found


def test_white_space_before_an_answer_is_no_difference() -> None:
    ours = _figures(100, 0.1, [" a b", "c", "d "])
    assert ours.others(_figures(100, 0.1, ["a b", "\nc", "d"])) == [2]


def test_other_answers_that_are_as_good_are_counted_apart() -> None:
    ours = _figures(100, 0.1, ["a", "b", "c", "d"])
    ours.tied = 1
    found = ratios(
        {("mid", "ours", 8): ours, ("mid", "serve", 8): _figures(10, 1, ["a", "b", "x", "y"])},
        FLOAT32,
    )
    assert (found["mid_8_equal"], found["mid_8_equal_or_tied"]) == (0.5, 0.75)


@pytest.mark.parametrize(
    ("wanted", "own", "flags", "taken"),
    [
        ("auto", "float32", {"amx_bf16"}, "float32"),
        ("auto", "bfloat16", {"fpu", "amx_bf16"}, "bfloat16"),
        ("auto", "bfloat16", {"fpu", "avx512_bf16"}, "bfloat16"),
        ("auto", "bfloat16", {"fpu", "avx512f"}, "float32"),
        ("auto", "bfloat16", set(), "float32"),
        ("float32", "bfloat16", {"amx_bf16"}, "float32"),
        ("bfloat16", "float32", set(), "bfloat16"),
    ],
)
def test_auto_is_the_checkpoints_own_type_where_the_cpu_computes_in_it(
    wanted: str, own: str, flags: set[str], taken: str
) -> None:
    assert number_type(wanted, own, frozenset(flags)) == taken


@pytest.mark.slow
def test_the_benchmark_in_short() -> None:
    """All three sides for real, over few tokens; its last line is what others read."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.engine", "--only", "nano", "--tokens", "4",
         "--bursts", "1,3"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["nano_dtype"] == "float32"
    assert figures["nano_3_equal_or_tied"] == figures["nano_1_equal_or_tied"] == 1
    assert figures["nano_ratio_3"] > 0
    assert figures["single_ratio"] == figures["nano_single_ratio"] > 0
    assert "nano (float32), burst of 3, transformers serve" in done.stdout
