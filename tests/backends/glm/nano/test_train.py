"""Training: stopped and resumed it ends in the same weights; what it saves loads."""

import signal
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText

from backends.glm.nano.tokenizer import train_tokenizer
from backends.glm.nano.train import Settings, Training, run
from tests.backends.glm.nano.tiny import WIDTHS

SETTINGS = Settings(seed=5, steps=4, pictures=2, see_steps=1, dense_steps=1)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(tokenizer, settings=SETTINGS):
    return Training(settings, tokenizer, WIDTHS)


def test_resumed_equals_uninterrupted(tokenizer, tmp_path, monkeypatch, capsys):
    whole = start(tokenizer)
    run(whole, tmp_path / "whole", check_every=100, save_every=100)

    first = start(tokenizer)
    steady = first.advance

    def interrupted(pool):
        loss = steady(pool)
        if first.step == 2:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C: finish the step, save, stop
        return loss

    monkeypatch.setattr(first, "advance", interrupted)
    run(first, tmp_path / "half", check_every=1, save_every=100)
    assert first.step == 2
    second = start(tokenizer)
    second.load(tmp_path / "half")
    assert second.step == 2
    run(second, tmp_path / "half", check_every=100, save_every=100)

    for one, other in zip(whole.weights, second.weights, strict=True):
        assert torch.equal(one, other)
    assert "step 1/" in capsys.readouterr().out


def test_what_is_saved_loads_as_glm(tokenizer, tmp_path):
    training = start(tokenizer)
    training.save(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(model).__name__ == "Glm4vForConditionalGeneration"
    for name, weight in training.model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])


def test_other_settings_are_not_resumed(tokenizer, tmp_path):
    start(tokenizer).save(tmp_path)
    with pytest.raises(SystemExit, match="other settings"):
        start(tokenizer, replace(SETTINGS, seed=6)).load(tmp_path)


def test_the_rate_rises_then_falls_twice():
    settings = Settings(steps=1000, see_steps=200, warmup=50, landing=0.35)
    rates = [settings.rate_at(step) for step in range(1000)]
    assert rates[0] < rates[49] == rates[129] == settings.see_rate
    assert rates[129] > rates[160] > rates[199] > 0
    assert rates[200] < rates[250] == rates[649] == settings.rate
    assert rates[700] > rates[999] > 0
    longer = replace(settings, steps=1100)
    assert [longer.rate_at(step) for step in range(650)] == rates[:650]
