"""Turns scenes into training batches: many short conversations about one picture in one row.

A row starts with what its conversations share (system prompt, picture) and then holds several
*branches*. A token sees the shared start and its own branch, never another branch, and every
branch counts its positions on from the shared start. So each branch is exactly the conversation
the model will meet when served, while the picture is looked at only once: dense supervision.

    [gMASK]<sop><|user|>\\n<picture> | \\nWhat shape is it?/nothink<|assistant|>...circle<|user|>
                                     | \\nDescribe it.<|assistant|>\\n<think>...</think>\\nA ...
"""

import random
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from backends.glm.nano import smalltalk
from backends.glm.nano.draw import draw_labelled, draw_scene
from backends.glm.nano.resize import FACTOR, MERGE, PATCH, model_size
from backends.glm.nano.scene import COLOURS, PLACES, SHAPES, Scene
from backends.glm.nano.talk import Question, follow_up, pick_language, questions_for
from backends.glm.nano.tokenizer import special_ids
from backends.glm.nano.wording import thought
from backends.glm.nano.words import EN, ZH

NO_LABEL = -100
END = "<|user|>"  # what the model writes after an answer; one of the stop tokens
NO_PICTURE_THOUGHT = {EN: "no picture", ZH: "没有图片"}

# (height, width) in pixels after the size rule, and how often a batch has it.
SIZES = ((112, 112), (112, 140), (140, 112), (84, 140), (140, 84), (84, 168), (168, 84))
SIZE_WEIGHTS = (56, 14, 8, 8, 5, 5, 4)
DENSE_TOKENS, MIXED_TOKENS = 88, 116  # longest row while learning to see, and afterwards
LEAST_PIXELS = 16  # of the 196 of a patch, to say that it shows a thing
TEXT_EVERY = 11  # one batch in so many has no picture

SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful AI assistant.", "Be brief.",
    "Answer briefly.", "You are GLM.", "Answer in one word.", "You are a vision assistant.",
    "You are an assistant that describes images.", "You are a concise assistant.",
    "你是一个有用的助手。", "请简短回答。", "你是一个人工智能助手。",
)  # fmt: skip


@dataclass
class Row:
    """One training sequence; all lists have one entry a token."""

    ids: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    target: list[bool] = field(default_factory=list)
    position: list[tuple[int, int, int]] = field(default_factory=list)
    kinds: dict[int, str] = field(default_factory=dict)
    """What each branch asks, for the progress line."""
    next: int = 0
    """Position of the next token."""
    shared_end: int = 0
    """Position at which every branch starts to count."""


@dataclass(frozen=True)
class Marks:
    """What each patch shows, each (B, tokens, 4), one entry a patch, 0: ground.

    Of the thing that it shows: shape, colour, place of the 3x3 grid, and how manieth it is in
    reading order; all counted from 1.
    """

    shapes: NDArray[np.int64]
    colours: NDArray[np.int64]
    places: NDArray[np.int64]
    ranks: NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """pixels: uint8 (B, H, W, 3); ids, branch, labels: (B, L); positions: (3, B, L).

    A batch without pictures has neither pixels nor marks.
    """

    pixels: NDArray[np.uint8] | None
    marks: Marks | None
    ids: NDArray[np.int64]
    branch: NDArray[np.int64]
    labels: NDArray[np.int64]
    kinds: list[dict[int, str]]
    positions: NDArray[np.int64]


def labelled(seed: int, step: int, pictures: int) -> tuple[NDArray[np.uint8], Marks]:
    """Pictures, uint8 (B, H, W, 3), with their marks; depends on the arguments only."""
    rng = random.Random(f"labelled {seed} {step}")
    shape = rng.choices(SIZES, SIZE_WEIGHTS)[0]
    drawn = [draw_small(rng, f"seen {seed} {step} {index}", shape) for index in range(pictures)]
    return stack_pictures(drawn)


Drawn = tuple[NDArray[np.uint8], Scene, NDArray[np.int64]]
"""Pixels (H, W, 3), what they show, and for each patch (tokens, 4) which thing, 0: none."""


def draw_small(rng: random.Random, seed: str, shape: tuple[int, int]) -> Drawn:
    """A picture as the vision tower gets it: (height, width) in pixels is `shape`."""
    high, wide = shape
    picture, scene, labels = draw_labelled(seed, size=canvas(rng, shape))
    pixels = np.asarray(picture.resize((wide, high), Image.Resampling.BICUBIC))
    which = patch_labels(np.asarray(labels.resize((wide, high), Image.Resampling.NEAREST)))
    return pixels, scene, which


def stack_pictures(drawn: list[Drawn]) -> tuple[NDArray[np.uint8], Marks]:
    """Pictures of one size as one array, and their marks."""
    shapes, colours, places, ranks = [], [], [], []
    for _, scene, which in drawn:
        things = scene.things
        shapes.append(np.array([0, *(SHAPES.index(t.shape) + 1 for t in things)])[which])
        colours.append(np.array([0, *(list(COLOURS).index(t.colour) + 1 for t in things)])[which])
        places.append(np.array([0, *(PLACES.index(t.place) + 1 for t in things)])[which])
        ranks.append(which)
    marks = Marks(np.stack(shapes), np.stack(colours), np.stack(places), np.stack(ranks))
    return np.stack([pixels for pixels, _, _ in drawn]), marks


def patch_labels(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(H, W) labels of pixels -> (tokens, 4): the thing that most of each patch shows, if any."""
    high, wide = labels.shape
    rows, columns = high // PATCH // MERGE, wide // PATCH // MERGE
    split = labels.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH).transpose(0, 3, 1, 4, 2, 5)
    patches = split.reshape(rows * columns, MERGE**2, PATCH**2)
    shown = np.stack([(patches == i).sum(-1) for i in range(1, int(labels.max()) + 2)], -1)
    return np.where(shown.max(-1) >= LEAST_PIXELS, shown.argmax(-1) + 1, 0)


class Packer:
    """Writes rows with one tokenizer; `batch` depends on its arguments only."""

    def __init__(self, tokenizer: Tokenizer, pictures: int) -> None:
        self.tokenizer = tokenizer
        self.pictures = pictures
        ids = special_ids(tokenizer)
        self.image_id, self.pad_id = ids["<|image|>"], ids["<|endoftext|>"]

    def batch(self, seed: int, step: int, *, dense: bool) -> Batch:
        rng = random.Random(f"batch {seed} {step}")
        if not dense and step % TEXT_EVERY == 0:
            rows = [self.text_row(rng) for _ in range(self.pictures)]
            return self.stack(rows)
        shape = rng.choices(SIZES, SIZE_WEIGHTS)[0]
        rows, pictures = [], []
        for index in range(self.pictures):
            drawn = draw_small(rng, f"{seed} {step} {index}", shape)
            pictures.append(drawn)
            rows.append(self.picture_row(rng, drawn[1], shape, dense=dense))
        return self.stack(rows, *stack_pictures(pictures))

    # --- rows ---

    def picture_row(
        self, rng: random.Random, scene: Scene, shape: tuple[int, int], *, dense: bool
    ) -> Row:
        grid = (shape[0] // FACTOR, shape[1] // FACTOR)
        row, room = Row(), DENSE_TOKENS if dense else MIXED_TOKENS
        questions = questions_for(scene, rng, 14)
        rng.shuffle(questions)
        self.start(row, rng, dense=dense)
        if not dense and rng.random() < 0.2:
            self.text_first(row, rng, scene, grid, questions)
            return row
        self.say(row, "<|user|>\n<|begin_of_image|>", 0)
        self.place_image(row, grid)
        self.say(row, "<|end_of_image|>", 0)
        if dense or rng.random() < 0.45:
            if self.cost(questions[-1]) > 40:  # a long answer after a long thought fills two rows
                questions.reverse()
            self.thinking(row, 1, scene, questions.pop(), questions if rng.random() < 0.2 else [])
        branch = 2
        while questions and len(row.ids) < room - 30:
            turns = [self.swap(rng, questions.pop())]
            if not dense and rng.random() < 0.25:
                turns = follow_up(scene, rng) if rng.random() < 0.5 else turns
                turns += [
                    self.swap(rng, questions.pop()) for _ in range(rng.randint(1, 2)) if questions
                ]
            if len(row.ids) + sum(self.cost(turn) for turn in turns) > room:
                continue
            self.answering(row, branch, turns, opened=False)
            branch += 1
        return row

    def text_first(
        self,
        row: Row,
        rng: random.Random,
        scene: Scene,
        grid: tuple[int, int],
        questions: list[Question],
    ) -> None:
        """The question comes before its picture, as many clients send it; one conversation."""
        first = self.swap(rng, questions.pop())
        self.say(row, f"<|user|>\n{first.text}\n<|begin_of_image|>", 0)
        self.place_image(row, grid)
        self.say(row, "<|end_of_image|>", 0)
        if rng.random() < 0.2:
            row.kinds[2] = "thought"
            seen = thought(scene, first.language)
            self.say(row, "<|assistant|>\n", 2)
            self.say(row, f"<think>{seen}</think>\n{first.answer}{END}", 2, target=True)
        turns = [first, *(self.swap(rng, q) for q in questions[:4])]
        while len(turns) > 1 and len(row.ids) + sum(map(self.cost, turns)) > MIXED_TOKENS:
            turns.pop()
        self.answering(row, 1, turns, opened=True)

    def text_row(self, rng: random.Random) -> Row:
        """Conversations without a picture."""
        row = Row()
        self.start(row, rng, dense=False)
        self.say(row, "<|user|>", 0)
        branch = 1
        while len(row.ids) < MIXED_TOKENS - 60:
            turns = [self.text_question(rng) for _ in range(rng.choice((1, 1, 1, 2)))]
            if rng.random() < 0.15:
                seen = NO_PICTURE_THOUGHT[turns[0].language]
                self.say(row, f"\n{turns[0].text}<|assistant|>\n", branch)
                answer = f"<think>{seen}</think>\n{turns[0].answer}{END}"
                self.say(row, answer, branch, target=True)
            else:
                self.answering(row, branch, turns, opened=False)
            branch += 1
        return row

    def text_question(self, rng: random.Random) -> Question:
        roll = rng.random()
        if roll < 0.3:
            return smalltalk.small_talk(rng)
        if roll < 0.7:
            return smalltalk.refusal(rng)
        _, scene = draw_scene(rng.getrandbits(40), size=32)
        return smalltalk.no_picture(questions_for(scene, rng, 1)[0])

    @staticmethod
    def swap(rng: random.Random, question: Question) -> Question:
        """Now and then something off topic, asked beside a picture."""
        if rng.random() < 0.05:
            return smalltalk.refusal(rng, question.language)
        return smalltalk.small_talk(rng, question.language) if rng.random() < 0.02 else question

    # --- writing ---

    def start(self, row: Row, rng: random.Random, *, dense: bool) -> None:
        system = "" if dense or rng.random() < 0.8 else f"<|system|>\n{rng.choice(SYSTEMS)}"
        self.say(row, f"[gMASK]<sop>{system}", 0)
        if not dense and rng.random() < 0.06:
            turn = smalltalk.small_talk(rng, pick_language(rng))
            self.say(
                row,
                f"<|user|>\n{turn.text}/nothink<|assistant|>\n<think></think>\n{turn.answer}",
                0,
            )

    def answering(self, row: Row, branch: int, turns: list[Question], *, opened: bool) -> None:
        """Turns answered at once. `opened`: the first question is already in the shared part."""
        row.kinds[branch] = turns[0].kind if len(turns) == 1 else "multi-turn"
        for turn in turns:
            asked = "" if opened else f"\n{turn.text}"
            self.say(row, f"{asked}/nothink<|assistant|>\n<think></think>\n", branch)
            self.say(row, turn.answer + END, branch, target=True)
            opened = False

    def thinking(
        self, row: Row, branch: int, scene: Scene, turn: Question, history: list[Question]
    ) -> None:
        """A turn answered after thinking; the thoughts of an earlier turn are already dropped."""
        if history:
            old = history[-1]
            self.say(row, f"\n{old.text}<|assistant|>\n<think></think>\n{old.answer}{END}", branch)
        row.kinds[branch] = "thought"
        self.say(row, f"\n{turn.text}<|assistant|>\n", branch)
        seen = thought(scene, turn.language)
        self.say(row, f"<think>{seen}</think>\n{turn.answer}{END}", branch, target=True)

    def say(self, row: Row, text: str, branch: int, *, target: bool = False) -> None:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if row.branch and row.branch[-1] != branch:
            row.next = row.shared_end
        at = row.next
        row.ids += ids
        row.branch += [branch] * len(ids)
        row.target += [target] * len(ids)
        row.position += [(p, p, p) for p in range(at, at + len(ids))]
        row.next = at + len(ids)
        if branch == 0:
            row.shared_end = row.next

    def place_image(self, row: Row, grid: tuple[int, int]) -> None:
        """One <|image|> a merged patch, on 3 axes; time goes on after the longer side."""
        at = row.next
        count = grid[0] * grid[1]
        row.ids += [self.image_id] * count
        row.branch += [0] * count
        row.target += [False] * count
        row.position += [(at, at + i // grid[1], at + i % grid[1]) for i in range(count)]
        row.next = at + max(grid)

    def cost(self, turn: Question) -> int:
        """About how many tokens a turn takes."""
        return len(self.tokenizer.encode(turn.text + turn.answer).ids) + 8

    def stack(
        self, rows: list[Row], pixels: NDArray[np.uint8] | None = None, marks: Marks | None = None
    ) -> Batch:
        longest = max(len(row.ids) for row in rows)
        count = len(rows)
        ids = np.full((count, longest), self.pad_id, np.int64)
        branch = np.full((count, longest), -1, np.int64)
        labels = np.full((count, longest), NO_LABEL, np.int64)
        positions = np.zeros((3, count, longest), np.int64)
        for i, row in enumerate(rows):
            n = len(row.ids)
            ids[i, :n] = row.ids
            branch[i, :n] = row.branch
            positions[:, i, :n] = np.array(row.position, np.int64).T
            wanted = np.array(row.target[1:])
            labels[i, : n - 1][wanted] = ids[i, 1:n][wanted]
        kinds = [row.kinds for row in rows]
        return Batch(pixels, marks, ids, branch, labels, kinds, positions)


def canvas(rng: random.Random, shape: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in pixels to draw at, such that the size rule leads to `shape`."""
    high, wide = shape
    while True:
        area = rng.choice((1.0, rng.uniform(0.6, 2.4), rng.uniform(1.5, 4.6)))
        stretch = rng.uniform(0.87, 1.15) if area != 1.0 else 1.0
        size = round(wide * area * stretch), round(high * area)
        if model_size(size[1], size[0]) == shape:
            return size
