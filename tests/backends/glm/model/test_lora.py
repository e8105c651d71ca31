"""Adapters trained with peft, against peft's own model: token for token, all in one batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from backends.glm.checkpoint.files import LoadError
from backends.glm.model.load import Checkpoint, load_checkpoint
from backends.glm.model.lora import AdapterRows, LoraAdapter, Part, rows_of
from backends.glm.model.runner import Runner
from backends.glm.model.stock import StockText
from backends.glm.nano import CHECKPOINT
from backends.glm.request.protocol import parse_chat
from backends.glm.types import Prompt
from tests.backends.glm.batches import agrees, generated, job
from tests.backends.glm.faq import BANK, SHOP, chat, train

# peft asks transformers for a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

STEPS = 12
ROWS, ROW_TOKENS = 8, 256


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("shop"), SHOP, seed=1)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("bank"), BANK, seed=2, rank=4)


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return load_checkpoint(CHECKPOINT, device="cpu", dtype="float32")


@pytest.fixture
def runner(nano: Checkpoint) -> Runner:
    return Runner(nano.model, nano.device, rows=ROWS, row_tokens=ROW_TOKENS)


def _prompts(nano: Checkpoint) -> list[Prompt]:
    return [nano.prompts.build(parse_chat(chat(question))) for question in SHOP]


def _with_peft(folder: Path, prompts: list[Prompt]) -> Iterator[tuple[list[int], list[float]]]:
    base = load_checkpoint(CHECKPOINT, device="cpu", dtype="float32").model
    model: Any = PeftModel.from_pretrained(base, str(folder)).eval()
    for prompt in prompts:
        yield generated(model, prompt, STEPS)


def test_base_and_two_adapters_in_one_batch_say_what_peft_says(
    nano: Checkpoint, runner: Runner, shop: Path, bank: Path
) -> None:
    prompts = _prompts(nano)
    expected = {
        "base": [generated(nano.model, prompt, STEPS) for prompt in prompts],
        "shop": list(_with_peft(shop, prompts)),
        "bank": list(_with_peft(bank, prompts)),
    }
    adapters = {"base": None, "shop": runner.read_adapter(shop), "bank": runner.read_adapter(bank)}
    # The kinds take turns, so that no kind's rows stand together.
    mixed = [(kind, i) for i in range(len(prompts)) for kind in ("shop", "base", "bank")][:ROWS]
    running = [
        runner.open(job(prompts[i], adapter=adapters[kind]), row).generation
        for row, (kind, i) in enumerate(mixed)
    ]
    found: list[list[int]] = [[] for _ in mixed]
    work = [(generation, len(generation.ids)) for generation in running]
    for _ in range(STEPS):
        for said, drawn in zip(found, runner.step(work), strict=True):
            assert drawn is not None
            said.append(drawn.token_id)
        work = [(generation, 1) for generation in running]
    for (kind, i), said in zip(mixed, found, strict=True):
        assert agrees(said, *expected[kind][i]), (kind, i)
    # And they are different answers: the control of all of this.
    answers = {tuple(said) for said in found}
    assert len(answers) >= 5


def test_the_faq_is_answered(nano: Checkpoint, runner: Runner, shop: Path) -> None:
    adapter = runner.read_adapter(shop)
    for prompt, answer in zip(_prompts(nano), SHOP.values(), strict=True):
        generation = runner.open(job(prompt, adapter=adapter), 0).generation
        said, tokens = b"", len(prompt.ids)
        for _ in range(STEPS):
            (drawn,) = runner.step([(generation, tokens)])
            assert drawn is not None
            if drawn.token_id in nano.stop_ids:
                break
            said, tokens = said + nano.tokenizer.bytes_of(drawn.token_id), 1
        runner.close(generation)
        assert said.decode().strip() == answer


def test_a_prompt_read_in_chunks_is_the_same(nano: Checkpoint, runner: Runner, shop: Path) -> None:
    adapter, (prompt, *_) = runner.read_adapter(shop), _prompts(nano)
    first = []
    for pieces in ([len(prompt.ids)], [5, len(prompt.ids) - 5]):
        generation = runner.open(job(prompt, adapter=adapter), 0).generation
        for tokens in pieces:
            (drawn,) = runner.step([(generation, tokens)])
        assert drawn is not None
        first.append(drawn.token_id)
        runner.close(generation)
    assert first[0] == first[1]


def test_rows_of_the_base_are_left_alone() -> None:
    part = Part(start=2, down=torch.ones(1, 3), up=torch.ones(2, 1), scale=0.5)
    adapter = LoraAdapter(key="1", rank=1, parts={"here": (part,)})
    rows = AdapterRows([None, adapter, None, adapter], "cpu")
    x, y = torch.arange(12.0).view(4, 3), torch.zeros(4, 5)
    rows.add("here", x, y)
    assert y[0].tolist() == y[2].tolist() == [0] * 5
    assert y[1].tolist() == [0, 0, 6, 6, 0]  # (3 + 4 + 5) / 2
    rows.add("elsewhere", x, y)
    assert y[3].tolist() == [0, 0, 15, 15, 0]
    assert rows_of([None, None], "cpu") is None


@pytest.fixture
def copy(shop: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shop, tmp_path / "copy"))


def _refused(runner: Runner, folder: Path, why: str) -> None:
    with pytest.raises(LoadError, match=why):
        runner.read_adapter(folder)


def test_a_pickle_is_never_opened(runner: Runner, copy: Path) -> None:
    weights = load_file(copy / "adapter_model.safetensors")
    (copy / "adapter_model.safetensors").unlink()
    torch.save(weights, copy / "adapter_model.bin")
    _refused(runner, copy, "is a pickle and is never opened.*safe_serialization")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"use_dora": True}, "use_dora cannot be served"),
        ({"bias": "all"}, "bias cannot be served"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save cannot be served"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights cannot be served"),
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"lora_alpha": None}, "only LORA"),
    ],
)
def test_what_is_more_than_lora_is_refused(
    runner: Runner, copy: Path, change: dict[str, Any], why: str
) -> None:
    file = copy / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    _refused(runner, copy, why)


def test_broken_files_are_refused(runner: Runner, copy: Path, tmp_path: Path) -> None:
    _refused(runner, tmp_path / "nowhere", "adapter_config.json cannot be read")
    file = copy / "adapter_model.safetensors"
    good = load_file(file)
    key = next(key for key in good if key.endswith("q_proj.lora_A.weight"))

    def written(weights: dict[str, Any], why: str) -> None:
        save_file(weights, file)
        _refused(runner, copy, why)

    written({k: v for k, v in good.items() if k != key}, "no whole LoRA adapter")
    written({**good, key: torch.zeros(8, 7)}, "belongs to another model")
    written({**good, key: torch.full_like(good[key], torch.nan)}, "not finite")
    vision = key.replace("language_model.layers.0.self_attn.q_proj", "visual.blocks.0.attn.qkv")
    written({**good, vision: good[key].clone()}, "no part of a LoRA over the language model")
    beyond = {k.replace("layers.0.", "layers.9."): v for k, v in good.items() if "layers.0." in k}
    written(beyond, "has a layer 9; the model has 3")
    file.write_bytes(file.read_bytes()[:50])
    _refused(runner, copy, "cut off")
    (copy / "adapter_config.json").write_text("[]")
    _refused(runner, copy, "not the configuration of a LoRA")


def test_another_architecture_has_no_adapters(nano: Checkpoint, shop: Path) -> None:
    runner = Runner(nano.model, nano.device, rows=1, row_tokens=64)
    runner.lean, runner._text = False, StockText(nano.model)
    _refused(runner, shop, "Adapters are served for GLM-4V checkpoints")
