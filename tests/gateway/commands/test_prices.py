from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.commands import prices
from gateway.prices.cards import DEFAULT_CARD, FOLDER, SHIPPED
from tests.gateway.commands.kit import alone

CARD = """\
version: mine-{month}
valid_from: 2026-{month}-01
models:
  m:
    sources: [the page]
    tiers:
      - {{name: "<=32k", prompt_to: 32000, in: "0.80", cached: "0.16", out: "8.00"}}
      - {{name: ">32k", in: "{price}", out: "16.00"}}
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    alone(monkeypatch, tmp_path)
    return tmp_path


def written(folder: Path, name: str, month: str, price: str) -> Path:
    path = folder / name
    path.write_text(CARD.format(month=month, price=price))
    return path


# ---- check


@pytest.mark.parametrize(
    ("file", "said"),
    [("nowhere.yaml", "nowhere.yaml: there is no such file"), ("/dev/zero", "longer than"),
     ("latin.yaml", "latin.yaml:1: is not UTF-8")],
)  # fmt: skip
def test_what_is_no_card_is_named(
    folder: Path, file: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "latin.yaml").write_bytes(b"version: \xe9\n")
    assert prices.main(["check", file]) == 1
    assert said in capsys.readouterr().out


def test_the_shipped_cards_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert prices.main(["check"]) == 0
    out = capsys.readouterr().out
    assert "ark-2026-09, 19 models, valid from 2026-09-01 to 2026-10-05" in out
    assert "ark-2026-10, 22 models, valid from 2026-10-06" in out
    assert "deepseek-v4-1-flash: the hours of a price are unknown" in out


def test_every_error_has_its_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "bad.yaml"
    path.write_text(
        'version: v\nvalid_from: 2026-13-01\nmodels:\n  a:\n    tiers: [{name: t, out: "1"}]\n'
    )
    assert prices.main(["check", str(path)]) == 1
    assert f"{path}: not valid YAML" in capsys.readouterr().out
    path.write_text(
        "version: v\n"
        "models:\n"
        "  a:\n"
        '    tiers: [{name: t, out: "1"}]\n'
        "  b:\n"
        "    per_request: cheap\n"
        '    tiers: [{name: t, in: "1", out: "1"}]\n'
        "  c:\n"
        "    tiers:\n"
        '      - {name: t, in: "1", out: "1"}\n'
        "    by_hour:\n"
        '      - {hours: ["25:00-26:00"], tiers: [{name: n, in: "1", out: "1"}]}\n'
        "  good:\n"
        '    tiers: [{name: t, in: "1", out: "1"}]\n'
    )
    assert prices.main(["check", str(path), "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert [problem.split(": ")[0] for problem in found["problems"]] == [
        f"{path}:4", f"{path}:6", f"{path}:12",
    ]  # fmt: skip
    assert "models.a.tiers[0].in" in found["problems"][0]
    assert "not a price" in found["problems"][1]
    assert "time of the day" in found["problems"][2]
    assert found["notes"] == ["good: no source is named"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version: v\n", "models: is required here"),
        ("models: {}\n", "version: is required here"),
        ("version: v\nmodels: []\n", "models: expected a section"),
        ("- a\n", "a section with keys of its own"),
        ("version: v\nvalid_from: 2026-10-02\nvalid_to: 2026-10-01\nmodels: {}\n", ":3: valid_to"),
        ("version: v\nvalid_from: soon\nmodels: {}\n", "a day such as 2026-10-06"),
        ("version: v\nsources: {s: x}\nmodels:\n  m:\n    sources: [y]\n    "
         'tiers: [{name: t, in: "1", out: "1"}]\n', ":5: models.m.sources: 'y' is not among"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_whole_card(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    (folder / "card.yaml").write_text(text)
    assert prices.main(["check", "card.yaml"]) == 1
    assert says in capsys.readouterr().out


def test_cards_that_are_right_alone_may_contradict_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.yaml", "b.yaml"):
        written(folder, name, "10", "1.20")
    assert prices.main(["check", "a.yaml"]) == 0
    assert prices.main(["check", "a.yaml", "b.yaml"]) == 1
    assert "begin on the same day" in capsys.readouterr().err
    (folder / "yuzui.yaml").write_text(
        "prices: {cards: [a.yaml]}\nmodels: {glm-4.6v: {cloud: [m]}}\n"
    )
    capsys.readouterr()
    assert prices.main(["check"]) == 0
    assert "mine-10" in capsys.readouterr().out


def test_a_model_of_the_settings_without_a_price_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "yuzui.yaml").write_text(
        "models:\n  glm: {cloud: [doubao-seed-9-301231, ep-1, ep-2, glm-5-2-260617]}\n"
        "ark: {endpoints: {ep-1: glm-5-2-260617}}\n"
    )
    assert prices.main(["check"]) == 1
    out = capsys.readouterr().out
    assert "doubao-seed-9-301231 (models.*.cloud) has no price in ark-2026-10" in out
    assert "ep-2 (models.*.cloud) has no price" in out
    assert "ep-1 (" not in out
    assert "glm-5-2-260617 (" not in out


# ---- diff


def test_what_changed_from_one_month_to_the_next(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (written(folder, f"{m}.yaml", m, p) for m, p in (("10", "1.20"), ("11", "1.30")))
    assert prices.main(["diff", str(old), str(new)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "what", "mine-10", "mine-11"]
    assert [line.split() for line in lines[2:]] == [
        ["m", "online", ">32k,", "input", "1.200", "1.300"],
        ["m", "online", ">32k,", "cached", "1.200", "1.300"],  # it has no price of its own
    ]
    assert prices.main(["diff", str(old), str(old)]) == 0
    assert "the same prices" in capsys.readouterr().out


def test_shipped_cards_are_compared_by_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert prices.main(["diff", "ark-2026-09", "ark-2026-10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(row["model"], row["new"]) for row in found if row["what"] == "model"} == {
        ("deepseek-v3-2", "removed"),
        ("deepseek-v4-1-flash", "added"),
        ("deepseek-v4-pro-ga", "added"),
        ("doubao-seed-2-1-lite", "added"),
        ("glm-5-3-flash", "added"),
    }
    assert prices.main(["diff", "ark-2026-09", "ark-1999"]) == 2
    assert "neither a file nor a version" in capsys.readouterr().err


# ---- show and quote


def test_a_model_is_shown_with_every_rate_and_its_sources(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert prices.main(["show", "doubao-seed-1-6-vision-250815"]) == 0
    out = capsys.readouterr().out
    assert "by ark-2026-10 (valid from 2026-10-06), CNY per million tokens" in out
    assert "batch" in out
    assert "sources   docs-2025-12" in out
    assert prices.main(["show", "deepseek-v4-1-flash", "--json"]) == 0
    tiers = json.loads(capsys.readouterr().out)["tiers"]
    assert [(tier["tier"], tier["hours"], tier["input"]) for tier in tiers] == [
        ("peak", "", "2.000"), ("off-peak", "unknown", "1.000"),
    ]  # fmt: skip


BOUGHT = "'doubao-seed-2-1-lite'"


@pytest.mark.parametrize("act", ["show", "quote"])
@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("1999-01-01", f"no price was in force on 1999-01-01; {BOUGHT} has one in ark-2026-10 "
         "(valid from 2026-10-06)"),
        ("2026-10-05", f"{BOUGHT} had no price on 2026-10-05 (by ark-2026-09); it has one in "
         "ark-2026-10 (valid from 2026-10-06)"),
        ("then", "--at 'then' is not a moment such as 2026-10-05T09:30"),
        ("0001-01-01T00:00+14:00", "--at '0001-01-01T00:00+14:00' is not a moment"),
        ("9999-12-31T23:59:59-12:00", "is not a moment such as"),
    ],
)  # fmt: skip
def test_a_model_at_another_time(
    act: str, at: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prices.main([act, "doubao-seed-2-1-lite", "--at", at]) == 2
    assert said in capsys.readouterr().err
    assert prices.main([act, "doubao-seed-2-1-lite", "--at", "2026-10-06T00:00"]) == 0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("doubao-seed-2-1", "did you mean doubao-seed-2-1-lite or doubao-seed-2-1-pro"),
        ("dubao-seed-1-8", "did you mean doubao-seed-1-8"),
        ("zzz", "no card has a price for the model 'zzz'; `yuzui prices check` lists cards"),
    ],
)
def test_a_model_that_no_card_knows(
    model: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prices.main(["show", model]) == 2
    assert said in capsys.readouterr().err


def test_a_gap_between_two_cards_is_no_price(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = written(folder, "one.yaml", "03", "1"), written(folder, "two.yaml", "06", "1")
    one.write_text(one.read_text() + "valid_to: 2026-03-31\n")
    (folder / "yuzui.yaml").write_text(f"prices: {{cards: [{one}, {two}]}}\n")
    assert prices.main(["show", "m", "--at", "2026-04-15"]) == 2
    said = capsys.readouterr().err
    assert "no price was in force on 2026-04-15; 'm' has one in mine-03 (valid from" in said
    assert "2026-03-01 to 2026-03-31) and mine-06 (valid from 2026-06-01)" in said


@pytest.mark.parametrize(
    ("args", "cost", "tier"),
    [
        (["glm-4-7", "--prompt", "32000", "--output", "200"], "0.0656", "<=32k, out<=0.2k"),
        (["glm-4-7", "--prompt", "32000", "--output", "201"], "0.098814", "<=32k"),
        (["doubao-seed-2-1-pro", "--prompt", "100", "--cached", "60", "--rate", "low"],
         "0.000192", "low flat"),
        (["doubao-seed-1-8", "--image", "1280x720", "--prompt", "78"], "0.00048",
         "<=32k, out<=0.2k"),
    ],
)  # fmt: skip
def test_a_quote(capsys: pytest.CaptureFixture[str], args: list[str], cost: str, tier: str) -> None:
    assert prices.main(["quote", *args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_float=Decimal)
    assert (str(found["cost_cny"]), found["tier"]) == (cost, tier)
    assert found["bound_cny"] >= found["cost_cny"]
    assert prices.main(["quote", *args]) == 0
    assert f"cost   {cost} CNY" in capsys.readouterr().out


def test_a_quote_by_a_card_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "yuzui.yaml").write_text(
        f"prices: {{cards: [{FOLDER / 'article.yaml'}]}}\nark: {{endpoints: {{ep-1: article}}}}\n"
    )
    for model in ("article", "ep-1"):
        assert prices.main(["quote", model, "--prompt", "300", "--output", "150"]) == 0
        assert "0.00925 CNY" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args",
    [["--image", "big"], ["--prompt", "-1"], ["--rate", "free"], ["--output", "x"],
     ["--image", "99999999x1"], ["--image", "²x²"], ["--prompt", str(2**27 + 1)],
     ["--prompt", "²"]],
)  # fmt: skip
def test_wrong_usage(args: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        prices.main(["quote", "m", *args])
    assert caught.value.code == 2


def test_the_default_card_is_the_newest_shipped_one() -> None:
    assert SHIPPED[-1] == DEFAULT_CARD
    assert all(path.is_file() for path in SHIPPED)
