"""Pictures: the same from the same seed, and every answer decidable."""

import math

import pytest
from PIL import ImageChops

from backends.glm.nano.draw import CONTRAST, MAX_THINGS, draw_labelled, draw_scene
from backends.glm.nano.scene import PLACES, SHAPES


def test_the_same_seed_draws_the_same_picture():
    for seed in range(30):
        picture, scene = draw_scene(seed, size=96)
        again, scene_again = draw_scene(seed, size=96)
        assert ImageChops.difference(picture, again).getbbox() is None
        assert scene == scene_again


def test_different_seeds_draw_different_pictures():
    assert len({draw_scene(seed, size=64)[0].tobytes() for seed in range(40)}) == 40


@pytest.mark.parametrize("size", [64, 224, (320, 180), (90, 200)])
def test_size_is_what_was_asked(size):
    wanted = (size, size) if isinstance(size, int) else size
    for seed in range(20):
        assert draw_scene(seed, size=size)[0].size == wanted


def test_things_are_apart_and_in_reading_order():
    for seed in range(300):
        _, scene = draw_scene(seed, size=64)
        things = scene.things
        assert len(things) <= MAX_THINGS
        order = [(thing.row, thing.x) for thing in things]
        assert order == sorted(order)
        for i, one in enumerate(things):
            assert one.place in PLACES
            assert one.shape in SHAPES
            for other in things[i + 1 :]:
                assert math.hypot(one.x - other.x, one.y - other.y) > 0.1


def test_a_thing_is_really_there_in_another_colour_than_the_ground():
    seen = 0
    for seed in range(200):
        picture, scene = draw_scene(seed, size=200)
        for thing in scene.things:
            # A corner of the picture may lie under a thing; the four together never do.
            edges = [picture.getpixel(xy) for xy in ((1, 1), (198, 1), (1, 198), (198, 198))]
            ground = max(edges, key=edges.count)
            middle = picture.getpixel((int(thing.x * 200), int(thing.y * 200)))
            assert math.dist(ground, middle) >= CONTRAST
            seen += 1
    assert seen > 300


def test_the_labels_say_which_thing_stands_where():
    for seed in range(100):
        _, scene, labels = draw_labelled(seed, size=120)
        assert labels.getextrema()[1] == len(scene.things)
        for number, thing in enumerate(scene.things, start=1):
            assert labels.getpixel((int(thing.x * 120), int(thing.y * 120))) == number
