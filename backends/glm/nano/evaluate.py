"""Measure a checkpoint: `python -m backends.glm.nano.evaluate`.

Draws pictures from seeds that training never uses, at the sizes people send, asks about them
through plain transformers, and counts an answer as right only if every character is. Prints the
table of EVALUATION.md.
"""

import argparse
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image

from backends.glm.nano import CHECKPOINT
from backends.glm.nano.answer import Answerer, Message, Turn, user
from backends.glm.nano.draw import draw_scene
from backends.glm.nano.smalltalk import no_picture, refusal, small_talk
from backends.glm.nano.talk import Question, follow_up, pick_language, questions_for
from backends.glm.nano.wording import thought
from backends.glm.nano.words import EN, ZH

BATCH = 48
QUESTIONS = 5  # asked about each picture, each in a conversation of its own
# (width, height) in pixels: icons, squares, photo sizes, screens; portrait too.
SIZES = (
    (64, 64), (112, 112), (128, 128), (224, 224), (224, 224), (256, 256), (336, 336), (512, 512),
    (320, 240), (400, 300), (640, 480), (1024, 768), (480, 640), (300, 400), (640, 360), (360, 640),
)  # fmt: skip


@dataclass
class Case:
    """A conversation whose questions all have to be answered right."""

    kind: str
    questions: list[Question]
    picture: Image.Image | None = None
    picture_first: bool = True
    thinking: bool = False
    expected_thought: str = ""
    things: int | None = None
    """How many things the picture shows."""
    messages: list[Message] = field(default_factory=list)
    right: bool = True


def make_cases(pictures: int) -> list[Case]:
    """The same cases on every run."""
    cases: list[Case] = []
    for index in range(pictures):
        rng = random.Random(f"evaluation {index}")
        picture, scene = draw_scene(f"evaluation {index}", size=rng.choice(SIZES))
        first = rng.random() < 0.8
        questions = questions_for(scene, rng, QUESTIONS)
        asked = questions[-1]
        seen = thought(scene, asked.language)
        about = [Case(q.kind, [q], picture, first) for q in questions]
        about.append(Case("thinking", [asked], picture, first, True, seen))
        pair = follow_up(scene, rng)
        if pair:
            about.append(Case("multi-turn", pair, picture, first))
        if len(questions) > 2:
            about.append(Case("multi-turn", questions[:3], picture, first))
        if index % 4 == 0:
            about.append(Case("refusal", [refusal(rng)], picture, first))
            cases.append(Case("refusal", [refusal(rng)]))
            cases.append(Case("refusal", [no_picture(rng.choice(questions))]))
            cases.append(Case("small talk", [small_talk(rng, pick_language(rng))]))
        cases += [replace(case, things=len(scene.things)) for case in about]
    return cases


def ask_all(answerer: Answerer, cases: list[Case]) -> None:
    """Play every case to its end, one question a round, with the model's own earlier answers."""
    for number in range(max(len(case.questions) for case in cases)):
        due = [case for case in cases if len(case.questions) > number]
        # Answers of like length together: a batch runs as long as its longest answer.
        due.sort(key=lambda case: len(case.questions[number].answer) + len(case.expected_thought))
        for start in range(0, len(due), BATCH):
            ask_batch(answerer, due[start : start + BATCH], number)


def ask_batch(answerer: Answerer, cases: list[Case], number: int) -> None:
    turns = []
    for case in cases:
        shows = number == 0 and case.picture is not None
        text = case.questions[number].text
        case.messages.append(user(text, picture=shows, first=case.picture_first))
        pictures = (case.picture,) if case.picture is not None else ()
        turns.append(Turn(case.messages, pictures, case.thinking))
    for case, text in zip(cases, answerer.answer(turns), strict=True):
        expected = case.questions[number].answer
        if case.thinking:
            expected = f"<think>{case.expected_thought}</think>\n{expected}"
        case.right &= text == expected
        case.messages.append({"role": "assistant", "content": text})


COLUMNS = ("0 or 1 thing", "2 things", "3 things", EN, ZH, "all")


def columns(case: Case) -> tuple[str, ...]:
    """The columns of the table that a case counts for."""
    shown = () if case.things is None else (COLUMNS[max(0, min(2, case.things - 1))],)
    return (*shown, case.questions[0].language, "all")


def table(cases: list[Case]) -> str:
    """Markdown: share of right answers by kind; by how much the picture shows; by language."""
    right, asked = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for case in cases:
        for column in columns(case):
            asked[case.kind, column] += 1
            right[case.kind, column] += case.right
    head = ("kind", *COLUMNS, "asked")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind in sorted({case.kind for case in cases}):
        shares = (
            f"{right[kind, column] / asked[kind, column]:.1%}" if asked[kind, column] else "-"
            for column in COLUMNS
        )
        lines.append(f"| {kind} | {' | '.join(shares)} | {asked[kind, 'all']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m backends.glm.nano.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT, help="default: the shipped one"
    )
    parser.add_argument("--pictures", type=int, default=2000, help="how many (%(default)s)")
    parser.add_argument("--wrong", type=int, default=0, help="show this many wrong answers a kind")
    parser.add_argument(
        "--quantize", default="none", choices=("none", "int8"), help="as the worker's option"
    )
    args = parser.parse_args()
    torch.set_num_threads(2)
    began = time.monotonic()
    cases = make_cases(args.pictures)
    ask_all(Answerer(args.checkpoint, quantize=args.quantize), cases)
    print(table(cases))
    print(f"\n{args.pictures} pictures, {len(cases)} conversations, "
          f"{(time.monotonic() - began) / 60:.1f} minutes")  # fmt: skip
    shown = Counter[str]()
    for case in cases:
        if not case.right and shown[case.kind] < args.wrong:
            shown[case.kind] += 1
            print(
                f"\n[{case.kind}]",
                *(f"{m['role']}: {m['content']}" for m in case.messages),
                sep="\n  ",
            )
            print(f"  expected: {[q.answer for q in case.questions]} {case.expected_thought}")


if __name__ == "__main__":
    main()
