"""Turns what a scene holds into words: names with articles, short answers, whole sentences."""

import random
from collections import Counter

from backends.glm.nano.scene import Scene, Thing
from backends.glm.nano.words import (
    COLOUR_ZH,
    COUNT_EN,
    COUNT_ZH,
    EN,
    PLACE_ZH,
    SHAPE_EN,
    SHAPE_ZH,
    ZH,
)

Texts = dict[str, str]
"""The same text by language."""


def groups(things: tuple[Thing, ...], by: str) -> dict[str, list[Thing]]:
    """Things by one of their attributes, first seen first."""
    found: dict[str, list[Thing]] = {}
    for thing in things:
        found.setdefault(getattr(thing, by), []).append(thing)
    return found


def a(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"


def naming(
    rng: random.Random, shape: str | None, colour: str | None, *, many: bool = False
) -> dict[str, Texts]:
    """Slots that name a thing by shape, by colour or by both. Synonyms only appear in questions.

    {the}: the red circle; {one}: a red circle; {them}: red circles, or the circles if `many`.
    """
    noun = rng.choice(SHAPE_EN[shape]) if shape else "shape"
    zh_noun = rng.choice(SHAPE_ZH[shape]) if shape else "图形"
    if not shape and rng.random() < 0.4:
        noun = rng.choice(("one", "object"))
    en = f"{colour} {noun}" if colour else noun
    if colour == "gray" and rng.random() < 0.4:
        en = f"grey {noun}"
    zh = f"{COLOUR_ZH[colour]}的{zh_noun}" if colour else zh_noun
    them = plural(en)
    return {
        EN: {"the": f"the {en}", "one": a(en), "them": f"the {them}" if many else them},
        ZH: {"the": zh, "one": zh, "them": zh},
    }


def colour_answer(colour: str) -> Texts:
    return {EN: colour, ZH: COLOUR_ZH[colour]}


def shape_answer(shape: str) -> Texts:
    return {EN: SHAPE_EN[shape][0], ZH: SHAPE_ZH[shape][0]}


def number_answer(number: int) -> Texts:
    return {EN: str(number), ZH: str(number)}


def place_answer(place: str) -> Texts:
    return {EN: place, ZH: PLACE_ZH[place]}


def place_slots(place: str) -> dict[str, Texts]:
    return {EN: {"side": place}, ZH: {"side": PLACE_ZH[place]}}


def look_answer(thing: Thing) -> Texts:
    """A thing without article: `red circle`, `红色的圆形`."""
    return {EN: look_en(thing), ZH: look_zh(thing)}


def look_en(thing: Thing) -> str:
    return f"{thing.colour} {SHAPE_EN[thing.shape][0]}"


def look_zh(thing: Thing) -> str:
    return f"{COLOUR_ZH[thing.colour]}的{SHAPE_ZH[thing.shape][0]}"


def listing(things: tuple[Thing, ...], by: str) -> Texts:
    """The different colours or shapes in reading order."""
    names = list(groups(things, by))
    if by == "colour":
        return {EN: ", ".join(names), ZH: "、".join(COLOUR_ZH[name] for name in names)}
    return {
        EN: ", ".join(SHAPE_EN[name][0] for name in names),
        ZH: "、".join(SHAPE_ZH[name][0] for name in names),
    }


def describe(scene: Scene, language: str) -> str:
    """One sentence without places: equal things are counted together."""
    ground = scene.background
    if not scene.things:
        return f"A plain {ground} picture." if language == EN else f"纯{COLOUR_ZH[ground]}的图片。"
    looks = Counter(map(look_en if language == EN else look_zh, scene.things))
    if language == ZH:
        parts = [f"{COUNT_ZH[count]}个{look}" for look, count in looks.items()]
        return f"{join(parts, '、', '和')}，{COLOUR_ZH[ground]}背景。"
    parts = [a(look) if n == 1 else f"{COUNT_EN[n]} {plural(look)}" for look, n in looks.items()]
    text = f"{join(parts, ', ', ' and ')} on {a(ground)} background."
    return text[0].upper() + text[1:]


def detail(scene: Scene, language: str) -> str:
    """Every thing with its place, then the background."""
    things, ground = scene.things, scene.background
    if not things:
        return describe(scene, language)
    if language == ZH:
        parts = [f"{PLACE_ZH[thing.place]}是{look_zh(thing)}" for thing in things]
        return f"图中有{len(things)}个图形：{'，'.join(parts)}。背景是{COLOUR_ZH[ground]}。"
    parts = [f"{a(look_en(thing))} {AT[thing.place]}" for thing in things]
    start = "There is 1 shape" if len(things) == 1 else f"There are {len(things)} shapes"
    return f"{start}: {join(parts, ', ', ' and ')}. The background is {ground}."


AT = {
    "top left": "at the top left", "top": "at the top", "top right": "at the top right",
    "left": "on the left", "center": "in the center", "right": "on the right",
    "bottom left": "at the bottom left", "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}  # fmt: skip


def thought(scene: Scene, language: str) -> str:
    """The dense description between think tags: background, how many, then each look and place."""
    if language == ZH:
        parts = [f"{look_zh(thing)}在{PLACE_ZH[thing.place]}" for thing in scene.things]
        return "；".join([f"{COLOUR_ZH[scene.background]}背景", f"共{len(scene.things)}个", *parts])
    parts = [f"{look_en(thing)} {thing.place}" for thing in scene.things]
    return "; ".join([f"{scene.background} background", f"{len(scene.things)} in all", *parts])


def join(parts: list[str], comma: str, last: str) -> str:
    if len(parts) == 1:
        return parts[0]
    return comma.join(parts[:-1]) + last + parts[-1]
