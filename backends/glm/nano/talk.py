"""Questions about a drawn scene with their true answers, in English and Chinese.

    facts_of(scene, rng)           what can be asked: kind, phrase key, slots, answer per language
    questions_for(scene, ...)      the same as text: Question(kind, language, text, answer)

Answers are short and canonical so that they can be compared exactly: `red`, `2`, `top left`,
`红色`. American spelling in answers (gray, center); any spelling is understood in questions.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

from backends.glm.nano import words
from backends.glm.nano.scene import COLOURS, SHAPES, Scene
from backends.glm.nano.wording import (
    Texts,
    colour_answer,
    describe,
    detail,
    groups,
    listing,
    look_answer,
    naming,
    number_answer,
    place_answer,
    place_slots,
    shape_answer,
)
from backends.glm.nano.words import EN, ZH

END_GAP = 0.15  # the leftmost thing is "on the left" when the next one is this much further right


@dataclass(frozen=True, slots=True)
class Question:
    """`kind` is the row of the evaluation table it counts for."""

    kind: str
    language: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Fact:
    """Something askable. `key` names the phrases, `slots` fill them, per language."""

    kind: str
    key: str
    answer: Texts
    slots: dict[str, dict[str, str]] = field(default_factory=lambda: {EN: {}, ZH: {}})


def questions_for(
    scene: Scene, rng: random.Random, count: int = 1, language: str | None = None
) -> list[Question]:
    """`count` different questions in a random order (fewer if the scene has fewer facts).

    Kinds are drawn evenly, so that a picture of several things is not only asked to be counted.
    """
    facts = facts_of(scene, rng)
    by_key: dict[str, list[Fact]] = {}
    for fact in facts:
        by_key.setdefault(fact.key, []).append(fact)
    chosen: list[Fact] = []
    while len(chosen) < count and by_key:
        key = rng.choice(list(by_key))
        pool = by_key[key]
        chosen.append(pool.pop(rng.randrange(len(pool))))
        if not pool:
            del by_key[key]
    return [ask(fact, language or pick_language(rng), rng) for fact in chosen]


def pick_language(rng: random.Random) -> str:
    return EN if rng.random() < 0.6 else ZH


def ask(fact: Fact, language: str, rng: random.Random) -> Question:
    """Put a fact into words, with the variety people type."""
    table = words.ASK_EN if language == EN else words.ASK_ZH
    slots = dict(fact.slots[language])
    slots["pic"] = rng.choice(words.PICTURE_EN if language == EN else words.PICTURE_ZH)
    slots["colour"] = rng.choice(("color", "colour"))
    text = rng.choice(table[fact.key]).format_map(slots)
    return Question(fact.kind, language, vary(text, language, rng), fact.answer[language])


def vary(text: str, language: str, rng: random.Random) -> str:
    """Politeness, case and a missing question mark change nothing about the answer."""
    if language == ZH:
        text = rng.choice(words.POLITE_ZH).format(q=text)
        if rng.random() < 0.2:
            text = text.rstrip("？。！")
        return text.replace("？", "?") if rng.random() < 0.1 else text
    text = text[0].upper() + text[1:]
    frame = rng.choice(words.POLITE_EN)
    if not frame.startswith("{q}") and rng.random() < 0.6:
        text = text[0].lower() + text[1:]
    text = frame.format(q=text)
    roll = rng.random()
    if roll < 0.15:
        text = text.lower()
    if rng.random() < 0.15:
        text = text.rstrip("?.!")
    return text


def facts_of(scene: Scene, rng: random.Random) -> list[Fact]:
    """Everything this picture can be asked, with decidable answers only."""
    facts = [
        Fact("description", "describe", {EN: describe(scene, EN), ZH: describe(scene, ZH)}),
        Fact("description", "detail", {EN: detail(scene, EN), ZH: detail(scene, ZH)}),
    ]
    if not scene.things:
        facts.append(Fact("colour", "colour.plain", colour_answer(scene.background)))
    else:
        facts.append(Fact("background", "background", colour_answer(scene.background)))
    facts += count_facts(scene, rng) + absent_facts(scene, rng) + yes_no_facts(scene, rng)
    facts += look_facts(scene, rng) + place_facts(scene, rng)
    return facts


def look_facts(scene: Scene, rng: random.Random) -> list[Fact]:
    """Shape and colour of a thing that the question names without doubt."""
    things, facts = scene.things, list[Fact]()
    by_shape = groups(things, "shape")
    by_colour = groups(things, "colour")
    if len(things) == 1:
        only = things[0]
        facts.append(Fact("colour", "colour.it", colour_answer(only.colour)))
        facts.append(Fact("shape", "shape.it", shape_answer(only.shape)))
    elif things:
        facts.append(Fact("colour", "colour.all", listing(things, "colour")))
        facts.append(Fact("shape", "shape.all", listing(things, "shape")))
    for shape, members in by_shape.items():
        if len({thing.colour for thing in members}) == 1:
            key = "colour.of" if len(members) == 1 else "colour.them"
            slots = naming(rng, shape, None, many=len(members) > 1)
            facts.append(Fact("colour", key, colour_answer(members[0].colour), slots))
    for colour, members in by_colour.items():
        if len(members) == 1:
            slots = {EN: {"look": colour}, ZH: {"look": words.COLOUR_ZH[colour]}}
            facts.append(Fact("shape", "shape.of", shape_answer(members[0].shape), slots))
    return facts


def count_facts(scene: Scene, rng: random.Random) -> list[Fact]:
    """Counts of all, by shape, by colour and by both; zero now and then."""
    things = scene.things
    everything = {EN: {"them": rng.choice(("shapes", "objects"))}, ZH: {"them": "图形"}}
    if rng.random() < 0.3:
        everything = {EN: {"them": "things"}, ZH: {"them": "物体"}}
    facts = [Fact("count", "count", number_answer(len(things)), everything)]
    shapes = Counter(thing.shape for thing in things)
    colours = Counter(thing.colour for thing in things)
    both = Counter((thing.shape, thing.colour) for thing in things)
    asked: list[tuple[str | None, str | None]] = [(shape, None) for shape in shapes]
    asked += [(None, colour) for colour in colours] + [(s, c) for s, c in both]
    if rng.random() < 0.4:
        asked.append((rng.choice(SHAPES), rng.choice((None, rng.choice(list(COLOURS))))))
    for shape, colour in asked:
        number = sum(
            (shape is None or thing.shape == shape) and (colour is None or thing.colour == colour)
            for thing in things
        )
        slots = naming(rng, shape, colour)
        facts.append(Fact("count", "count", number_answer(number), slots))
    return facts


def place_facts(scene: Scene, rng: random.Random) -> list[Fact]:
    """Where a thing is, and what is at a place."""
    things, facts = scene.things, list[Fact]()
    if len(things) == 1:
        facts.append(Fact("position", "position.it", place_answer(things[0].place)))
    for thing in things:
        both = (thing.shape, thing.colour)
        for shape, colour in ((thing.shape, None), (None, thing.colour), both):
            alike = [t for t in things if shape in (None, t.shape) and colour in (None, t.colour)]
            if len(alike) == 1:
                slots = naming(rng, shape, colour)
                facts.append(Fact("position", "position", place_answer(thing.place), slots))
    if len(things) < 2:
        return facts
    for side, key, axis, sign in (
        ("left", "at.side", "x", 1), ("right", "at.side", "x", -1),
        ("top", "at.end", "y", 1), ("bottom", "at.end", "y", -1),
    ):  # fmt: skip
        ranked = sorted(things, key=lambda thing: sign * getattr(thing, axis))
        if abs(getattr(ranked[0], axis) - getattr(ranked[1], axis)) >= END_GAP:
            facts.append(Fact("position", key, look_answer(ranked[0]), place_slots(side)))
    places = groups(things, "place")
    for place, members in places.items():
        if len(members) == 1 and " " in place:
            facts.append(Fact("position", "at.corner", look_answer(members[0]), place_slots(place)))
        elif len(members) == 1 and place == "center":
            facts.append(Fact("position", "at.middle", look_answer(members[0])))
    return facts


def absent_facts(scene: Scene, rng: random.Random) -> list[Fact]:
    """Colour or place of something that is not there: say so."""
    present = {thing.shape for thing in scene.things}
    missing = [name for name in SHAPES if name not in present]
    if not missing:
        return []
    shape = rng.choice(missing)
    answer = {
        EN: f"There is no {shape}.",
        ZH: f"图中没有{words.SHAPE_ZH[shape][0]}。",
    }
    key = rng.choice(("colour.of", "position"))
    return [Fact("absent", key, answer, naming(rng, shape, None))]


def yes_no_facts(scene: Scene, rng: random.Random) -> list[Fact]:
    """Is there such a thing; is this thing of that colour. Half of the answers are no."""
    things = scene.things
    shape: str | None = rng.choice(SHAPES)
    colour: str | None = rng.choice(list(COLOURS))
    if things and rng.random() < 0.6:
        thing = rng.choice(things)
        shape, colour = thing.shape, thing.colour
        if rng.random() < 0.3:
            other = [name for name in COLOURS if name != colour]
            colour = rng.choice(other)
    if rng.random() < 0.4:
        colour = None
    elif rng.random() < 0.3:
        shape = None
    there = any(shape in (None, t.shape) and colour in (None, t.colour) for t in things)
    answer = {EN: "Yes", ZH: "有"} if there else {EN: "No", ZH: "没有"}
    facts = [Fact("yes or no", "exists", answer, naming(rng, shape, colour))]
    unique = [members[0] for members in groups(scene.things, "shape").values() if len(members) == 1]
    if unique:
        thing = rng.choice(unique)
        look = thing.colour if rng.random() < 0.5 else rng.choice(list(COLOURS))
        slots = naming(rng, thing.shape, None)
        slots[EN]["look"], slots[ZH]["look"] = look, words.COLOUR_ZH[look]
        same = look == thing.colour
        answer = {EN: "Yes", ZH: "是"} if same else {EN: "No", ZH: "不是"}
        facts.append(Fact("yes or no", "is.look", answer, slots))
    return facts


def follow_up(scene: Scene, rng: random.Random) -> list[Question]:
    """Two turns, the second only half said: "What colour is the star?" - "And the circle?"."""
    by_key: dict[str, list[Fact]] = {}
    for fact in facts_of(scene, rng):
        if fact.key in ("colour.of", "position", "count"):
            by_key.setdefault(fact.key, []).append(fact)
    pairs = [facts for facts in by_key.values() if len(facts) > 1]
    if not pairs:
        return []
    first, second = rng.sample(rng.choice(pairs), 2)
    language = pick_language(rng)
    name = second.slots[language]["them" if second.key == "count" else "the"]
    text = rng.choice(words.AND_EN if language == EN else words.AND_ZH).format(name=name)
    return [
        ask(first, language, rng),
        Question("multi-turn", language, text, second.answer[language]),
    ]
