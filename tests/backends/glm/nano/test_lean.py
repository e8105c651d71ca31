"""The packed training forward equals plain transformers on each conversation alone."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Glm46VImageProcessorPil, PreTrainedTokenizerFast

from backends.glm.nano import lean
from backends.glm.nano.build import TEMPLATE, make_config, make_model, preprocessor
from backends.glm.nano.draw import draw_scene
from backends.glm.nano.pack import NO_LABEL, Packer, Row, labelled, patch_labels
from backends.glm.nano.talk import questions_for
from backends.glm.nano.tokenizer import train_tokenizer
from tests.backends.glm.nano.tiny import WIDTHS


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.mark.parametrize("size", [(300, 230), (224, 224)])
def test_packed_equals_alone(tokenizer, size):
    model = make_model(make_config(tokenizer, WIDTHS), 1).eval()
    picture, scene = draw_scene(4, size=size)
    noise, question = questions_for(scene, random.Random(0), 2)

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE.read_text())
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": question.answer},
    ]
    text = fast.apply_chat_template(messages, tokenize=False) + "<|user|>"
    seen = Glm46VImageProcessorPil(**preprocessor())(images=[picture], return_tensors="pt")
    rows, columns = (seen["image_grid_thw"][0, 1:] // 2).tolist()
    ids = tokenizer.encode(text.replace("<|image|>", "<|image|>" * rows * columns)).ids
    tokens = torch.tensor([ids])
    kind = (tokens == model.config.image_token_id).int()

    packer, row = Packer(tokenizer, 1), Row()
    packer.say(row, "[gMASK]<sop><|user|>\n<|begin_of_image|>", 0)
    packer.place_image(row, (rows, columns))
    packer.say(row, "<|end_of_image|>", 0)
    packer.answering(row, 1, [noise], opened=False)
    packer.answering(row, 2, [question], opened=False)
    small = picture.resize((columns * 28, rows * 28), Image.Resampling.BICUBIC)
    batch = packer.stack([row], np.array(small)[None])
    own = [i for i, branch in enumerate(row.branch) if branch in (0, 2)]
    assert [row.ids[i] for i in own] == ids

    wanted = np.isin(batch.branch, (0, 2))
    with torch.no_grad():
        plain = model(input_ids=tokens, mm_token_type_ids=kind, **seen).logits[0]
        packed = model.lm_head(
            lean.learnt_states(
                model,
                torch.from_numpy(batch.ids),
                torch.from_numpy(batch.positions),
                torch.from_numpy(batch.branch),
                lean.see(model.model.visual, torch.from_numpy(batch.pixels)),
                torch.from_numpy(wanted),
            )
        )
    assert torch.allclose(plain, packed, atol=1e-4)


def test_only_what_the_assistant_says_is_learnt(tokenizer):
    packer = Packer(tokenizer, 8)
    batch = packer.batch(0, 1, dense=False)
    stop = tokenizer.token_to_id("<|user|>")
    for row in range(8):
        labels = batch.labels[row]
        learnt = np.flatnonzero(labels != NO_LABEL)
        assert 0 < len(learnt) < len(labels)
        assert (labels[learnt] == batch.ids[row][learnt + 1]).all()
        # A run of learnt tokens starts after a line break and ends with the stop token.
        ends = [i for i in learnt if i + 1 not in set(learnt)]
        assert all(labels[i] == stop for i in ends)


def test_each_patch_is_labelled_with_what_it_shows():
    labels = np.zeros((56, 84), np.uint8)
    labels[0:14, 14:28] = 2  # the second patch of the first row: of token 0 the upper right
    labels[30:54, 56:60] = 1  # covers enough pixels of two patches of the last token
    found = patch_labels(labels)
    assert found.shape == (6, 4)
    assert found[0].tolist() == [0, 2, 0, 0]
    assert found[5].tolist() == [1, 0, 1, 0]
    assert found.sum() == 4
    (one, marks), (two, _) = labelled(1, 7, 3), labelled(1, 7, 3)
    assert (one == two).all()
    for other in (marks.colours, marks.places, marks.ranks):
        assert ((marks.shapes > 0) == (other > 0)).all()


def test_batches_depend_on_seed_and_step_only(tokenizer):
    one, two = (Packer(tokenizer, 4).batch(3, 17, dense=False) for _ in range(2))
    assert (one.ids == two.ids).all()
    assert (one.pixels == two.pixels).all()


def test_the_norm_and_its_gradient(tokenizer):
    module = make_model(make_config(tokenizer, WIDTHS), 1).model.language_model.norm
    torch.nn.init.normal_(module.weight)
    x = torch.randn(3, 5, 48, requires_grad=True)
    there = torch.randn(3, 5, 48)
    for ours, theirs in zip(
        torch.autograd.grad((lean.norm(module, x) * there).sum(), (x, module.weight)),
        torch.autograd.grad((module(x) * there).sum(), (x, module.weight)),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)
