"""Questions and answers agree with the scene, in both languages."""

import random

import pytest

from backends.glm.nano import words
from backends.glm.nano.draw import draw_scene
from backends.glm.nano.scene import COLOURS, PASTELS, PLACES, SHAPES, Scene, Thing
from backends.glm.nano.smalltalk import ABLE, no_picture, refusal, small_talk
from backends.glm.nano.talk import facts_of, follow_up, questions_for
from backends.glm.nano.wording import describe, detail, plural, thought
from backends.glm.nano.words import EN, ZH

CIRCLE = Thing("circle", "red", 0.2, 0.5, 0.3)
SQUARE = Thing("square", "blue", 0.8, 0.5, 0.3)
TWO = Scene("white", (CIRCLE, SQUARE))


def answers(scene: Scene, key: str, language: str = EN) -> set[str]:
    return {
        fact.answer[language]
        for seed in range(80)
        for fact in facts_of(scene, random.Random(seed))
        if fact.key == key
    }


def test_descriptions():
    assert describe(TWO, EN) == "A red circle and a blue square on a white background."
    assert describe(TWO, ZH) == "一个红色的圆形和一个蓝色的正方形，白色背景。"
    assert detail(TWO, EN) == (
        "There are 2 shapes: a red circle on the left and a blue square on the right. "
        "The background is white."
    )
    three = Scene("orange", tuple(Thing("square", "blue", x, 0.5, 0.2) for x in (0.1, 0.5, 0.9)))
    assert describe(three, EN) == "Three blue squares on an orange background."
    assert describe(three, ZH) == "三个蓝色的正方形，橙色背景。"
    assert describe(Scene("red", ()), EN) == "A plain red picture."
    assert thought(TWO, EN) == "white background; 2 in all; red circle left; blue square right"


def test_what_is_where():
    assert answers(TWO, "at.side") == {"red circle", "blue square"}
    assert answers(TWO, "position") >= {"left", "right", "There is no star."}
    assert answers(TWO, "position", ZH) >= {"左边", "右边", "图中没有星形。"}


def test_two_colours_are_listed_instead_of_guessed():
    assert answers(TWO, "colour.it") == set()
    assert answers(TWO, "colour.all") == {"red, blue"}


def test_counts_are_right():
    for seed in range(200):
        rng = random.Random(seed)
        _, scene = draw_scene(seed, size=32)
        for fact in facts_of(scene, rng):
            if fact.key == "count":
                assert int(fact.answer[EN]) <= len(scene.things)
                assert fact.answer[EN] == fact.answer[ZH]


def test_every_scene_can_be_asked_without_repeating():
    for seed in range(500):
        rng = random.Random(seed)
        _, scene = draw_scene(seed, size=32)
        questions = questions_for(scene, rng, 5)
        assert questions
        assert all(q.text and q.answer and "{" not in q.text for q in questions)
        assert all(q.language in (EN, ZH) for q in questions)
        assert len(follow_up(scene, rng)) in (0, 2)


def test_one_language_can_be_asked_for():
    _, scene = draw_scene(4, size=32)
    assert {q.language for q in questions_for(scene, random.Random(0), 6, ZH)} == {ZH}


def test_every_phrase_key_exists_in_both_languages():
    assert words.ASK_EN.keys() == words.ASK_ZH.keys()
    assert set(words.SHAPE_EN) == set(words.SHAPE_ZH) == set(SHAPES)
    assert set(words.COLOUR_ZH) == {*COLOURS, *PASTELS}
    assert set(words.PLACE_ZH) == set(PLACES)


def test_small_talk_and_refusals_say_what_it_can_do():
    rng = random.Random(0)
    for _ in range(200):
        assert ABLE[EN] in refusal(rng, EN).answer
        assert ABLE[ZH] in refusal(rng, ZH).answer
        assert small_talk(rng).text.strip()
    question = questions_for(TWO, rng, 1, EN)[0]
    assert no_picture(question).text == question.text


@pytest.mark.parametrize(("noun", "many"), [("box", "boxes"), ("circle", "circles")])
def test_plurals(noun, many):
    assert plural(noun) == many
