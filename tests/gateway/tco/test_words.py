from __future__ import annotations

import re

from gateway.tco.words import EN, LANGUAGES, ZH


def test_both_languages_say_everything_with_the_same_figures() -> None:
    assert set(EN) == set(ZH)
    for name, said in EN.items():
        assert set(re.findall(r"{(\w+)}", said)) == set(re.findall(r"{(\w+)}", ZH[name])), name


def test_the_languages_are_those_of_the_option() -> None:
    assert set(LANGUAGES) == {"en", "zh"}
