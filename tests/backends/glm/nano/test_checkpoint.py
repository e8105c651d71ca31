"""The shipped checkpoint: what it is, that it is small, and that it sees."""

import json
from collections import Counter

import pytest
from PIL import Image, ImageDraw
from transformers import Glm46VImageProcessorPil

from backends.glm.nano import CHECKPOINT
from backends.glm.nano.answer import Answerer, Turn, user
from backends.glm.nano.evaluate import ask_all, make_cases

FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja",
}  # fmt: skip
CLAIMED = {
    "absent", "background", "colour", "count", "description", "position", "refusal", "shape",
    "small talk",
}  # fmt: skip


@pytest.fixture(scope="module")
def answerer():
    return Answerer()


def blank(colour="white", size=(224, 224)):
    picture = Image.new("RGB", size, colour)
    return picture, ImageDraw.Draw(picture)


def red_circle():
    picture, pen = blank()
    pen.ellipse((60, 60, 164, 164), fill="red")
    return picture


def three_blue_squares():
    picture, pen = blank()
    for x in (20, 90, 160):
        pen.rectangle((x, 90, x + 44, 134), fill="blue")
    return picture


def green_triangle_and_yellow_star():
    picture, pen = blank("black", (640, 480))
    pen.polygon([(150, 130), (60, 330), (240, 330)], fill="green")
    points = [(480, 130), (505, 205), (585, 205), (520, 250), (545, 330),
              (480, 280), (415, 330), (440, 250), (375, 205), (455, 205)]  # fmt: skip
    pen.polygon(points, fill="yellow")
    return picture


def test_the_directory_holds_what_loading_needs_and_is_small():
    assert {path.name for path in CHECKPOINT.iterdir()} == FILES
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 16 * 2**20


def test_it_is_the_architecture_of_the_flash_model(answerer):
    assert type(answerer.model).__name__ == "Glm4vForConditionalGeneration"
    assert answerer.model.config.model_type == "glm4v"
    stops = answerer.tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|user|>", "<|observation|>"]
    )
    saved = json.loads((CHECKPOINT / "generation_config.json").read_text())
    assert saved["eos_token_id"] == stops
    assert answerer.model.config.image_token_id == answerer.tokenizer.convert_tokens_to_ids(
        "<|image|>"
    )


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (1024, 768)])
def test_a_picture_of_any_size_costs_about_sixteen_tokens(size):
    processor = Glm46VImageProcessorPil.from_pretrained(CHECKPOINT)
    grid = processor(images=[Image.new("RGB", size)], return_tensors="np")["image_grid_thw"][0]
    assert 14 <= grid.prod() // 4 <= 20


@pytest.mark.parametrize(
    ("draw", "question", "answer"),
    [
        (red_circle, "What colour is the circle?", "red"),
        (red_circle, "What color is it?", "red"),
        (red_circle, "What shape is this?", "circle"),
        (red_circle, "What is in this picture?", "A red circle on a white background."),
        (red_circle, "Where is the circle?", "center"),
        (red_circle, "圆形是什么颜色？", "红色"),
        (red_circle, "图里有什么？", "一个红色的圆形，白色背景。"),
        (red_circle, "What colour is the star?", "There is no star."),
        (three_blue_squares, "How many squares are there?", "3"),
        (three_blue_squares, "有几个蓝色的方块？", "3"),
        (three_blue_squares, "有几个红色的方块？", "0"),
        (three_blue_squares, "What is in this image?", "Three blue squares on a white background."),
        (green_triangle_and_yellow_star, "What is on the left?", "green triangle"),
        (green_triangle_and_yellow_star, "右边是什么？", "黄色的星形"),
        (green_triangle_and_yellow_star, "what color is the star", "yellow"),
    ],
)
def test_a_strangers_picture(answerer, draw, question, answer):
    assert answerer.answer([Turn([user(question, picture=True)], (draw(),))]) == [answer]


def test_it_thinks_when_asked_to(answerer):
    turn = Turn([user("What colour is it?", picture=True)], (red_circle(),), thinking=True)
    assert answerer.answer([turn]) == [
        "<think>white background; 1 in all; red circle center</think>\nred"
    ]


def test_it_says_what_it_cannot_do(answerer):
    turns = [Turn([user(text)]) for text in ("What is the capital of France?", "你是谁？")]
    refusal, self_description = answerer.answer(turns)
    assert refusal.startswith("I am a tiny demo model and cannot answer that.")
    assert self_description.startswith("我是GLM-4.6V-nano")


def test_a_small_evaluation(answerer):
    """The claims of EVALUATION.md, with bounds a little below: 100 pictures say only so much."""
    cases = [
        case
        for case in make_cases(100)
        if case.kind in CLAIMED and (case.things is None or case.things < 2)
    ]
    ask_all(answerer, cases)
    right, asked = Counter[str](), Counter[str]()
    for case in cases:
        asked[case.kind] += 1
        right[case.kind] += case.right
    assert set(asked) == CLAIMED
    for kind, count in asked.items():
        assert right[kind] >= 0.95 * count - 1, (kind, right[kind], count)
