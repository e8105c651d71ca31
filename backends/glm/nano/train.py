"""Train glm-4.6v-nano from nothing: `python -m backends.glm.nano.train --out my-nano`.

No data is needed: pictures, questions and answers are drawn while it trains. First the vision
tower learns to see, by telling the shape and colour of what each patch shows; then the model
writes a dense description of every picture; then questions of all kinds are mixed in.

The result depends on the seed and the settings only, not on how many threads work: a batch is
always computed as the same halves, each on one thread.
"""

import argparse
import signal
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from backends.glm.nano import lean
from backends.glm.nano.build import make_config, make_model, save_checkpoint
from backends.glm.nano.draw import MAX_THINGS
from backends.glm.nano.pack import NO_LABEL, Batch, Marks, Packer, labelled
from backends.glm.nano.resize import MERGE
from backends.glm.nano.scene import COLOURS, PLACES, SHAPES
from backends.glm.nano.tokenizer import train_tokenizer

SHARDS = 2  # a step is the sum of this many independent halves: fixed, so results never change
STATE = "training.pt"
# What is told of each patch of a token: thing or ground, and which shape, colour, place and rank.
# The layer that tells it is thrown away at the end.
CHOICES = (len(SHAPES), len(COLOURS), len(PLACES), MAX_THINGS)
LABELS = MERGE**2 * (1 + sum(CHOICES))
HELD_OUT = 1_000_003  # added to the seed: pictures of the progress line are never trained on


@dataclass(frozen=True)
class Settings:
    """Everything the weights depend on."""

    seed: int = 0
    steps: int = 5500
    pictures: int = 24
    """Pictures in one shard; a step sees SHARDS times as many."""
    see_steps: int = 2000
    """Steps in which the vision tower alone learns what each patch shows."""
    dense_steps: int = 200
    """Steps after that spent on descriptions before questions of all kinds come in."""
    see_share: float = 0.25
    """Weight of what the patches show beside the answers, once these are taught: the tower goes
    on seeing where things are, and the language model learns to read it off."""
    see_rate: float = 4e-3
    rate: float = 2.5e-3
    warmup: int = 40
    landing: float = 0.25
    """Part of the steps, at the end of the seeing and of all, over which the rate falls to zero."""
    decay: float = 0.03

    def rate_at(self, step: int) -> float:
        """Up, level, and down at the end, so that until then --steps may still be changed."""
        if self.seeing(step):
            left = (self.see_steps - step) / (self.see_steps * self.landing)
            return self.see_rate * min(1.0, (step + 1) / self.warmup, left)
        left = (self.steps - step) / (self.steps * self.landing)
        return self.rate * min(1.0, (step - self.see_steps + 1) / self.warmup, left)

    def seeing(self, step: int) -> bool:
        return step < self.see_steps

    def dense(self, step: int) -> bool:
        return step < self.see_steps + self.dense_steps


def make_optimisers(model: Any, labeller: torch.nn.Linear, settings: Settings) -> list[Any]:
    """Muon for the matrices inside the layers, AdamW for embeddings, head, norms and biases.

    Muon sees about twice as much in a picture, which is what two slow cores need.
    """
    inner: list[Tensor] = []
    outer: list[Tensor] = list(labeller.parameters())
    for name, weight in model.named_parameters():
        inside = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
        (inner if inside else outer).append(weight)
    return [
        torch.optim.Muon(
            inner, lr=settings.rate, weight_decay=settings.decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(outer, lr=settings.rate, betas=(0.9, 0.98), weight_decay=settings.decay),
    ]


class Training:
    """A model on its way: weights, optimiser state and the number of the next step."""

    def __init__(
        self, settings: Settings, tokenizer: Tokenizer, widths: dict[str, Any] | None = None
    ) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.packer = Packer(tokenizer, settings.pictures)
        self.model: Any = make_model(make_config(tokenizer, widths), settings.seed)
        self.labeller = torch.nn.Linear(self.model.config.vision_config.out_hidden_size, LABELS)
        self.weights: list[Tensor] = [*self.model.parameters(), *self.labeller.parameters()]
        self.optimisers = make_optimisers(self.model, self.labeller, settings)
        self.step = 0

    def advance(self, pool: ThreadPoolExecutor) -> float:
        """One step; returns its mean loss a token."""
        halves = list(pool.map(self.shard, range(SHARDS)))
        for weight, *parts in zip(self.weights, *(grads for _, grads in halves), strict=True):
            found = [part for part in parts if part is not None]
            # A batch without pictures, or without words, leaves a tower without gradients.
            weight.grad = torch.stack(found).sum(0) / SHARDS if found else None
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.settings.rate_at(self.step)
            optimiser.step()
        self.step += 1
        return sum(loss for loss, _ in halves) / SHARDS

    def shard(self, index: int) -> tuple[float, Sequence[Tensor | None]]:
        """Loss and gradients of one shard of the current step."""
        if self.settings.seeing(self.step):
            loss = self.seeing_loss(self.step * SHARDS + index)
            return float(loss.detach()), torch.autograd.grad(loss, self.weights, allow_unused=True)
        dense = self.settings.dense(self.step)
        batch = self.packer.batch(self.settings.seed, self.step * SHARDS + index, dense=dense)
        logits, labels, seen = self.predict(batch)
        loss = answers = F.cross_entropy(logits, labels)
        if seen is not None and batch.marks is not None:
            loss = answers + self.settings.see_share * self.telling_loss(seen, batch.marks)
        return float(answers.detach()), torch.autograd.grad(loss, self.weights, allow_unused=True)

    def seeing_loss(self, number: int) -> Tensor:
        """How badly the patches of a batch of pictures are told."""
        pixels, marks = labelled(self.settings.seed, number, self.settings.pictures)
        with torch.autocast("cpu", torch.bfloat16):
            seen = lean.see(self.model.model.visual, torch.from_numpy(pixels))
        return self.telling_loss(seen, marks)

    def telling_loss(self, seen: Tensor, marks: Marks) -> Tensor:
        """How badly it is told what each patch shows. seen: (B, tokens, width)."""
        shapes = torch.from_numpy(marks.shapes)
        with torch.autocast("cpu", torch.bfloat16):
            told = self.labeller(seen)
        there, *choices = told.float().view(*shapes.shape, -1).split((1, *CHOICES), dim=-1)
        thing = shapes > 0
        loss = F.binary_cross_entropy_with_logits(there[..., 0], thing.float())
        wanted = (marks.shapes, marks.colours, marks.places, marks.ranks)
        for choice, which in zip(choices, wanted, strict=True):
            loss = loss + F.cross_entropy(choice[thing], torch.from_numpy(which)[thing] - 1)
        return loss

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (N, vocabulary) and labels (N,) of the N tokens that are learnt, and what the
        tower saw (B, tokens, width)."""
        labels = torch.from_numpy(batch.labels)
        learnt = labels != NO_LABEL
        visual, seen = self.model.model.visual, None
        with torch.autocast("cpu", torch.bfloat16):
            if batch.pixels is not None:
                seen = lean.see(visual, torch.from_numpy(batch.pixels))
            hidden = lean.learnt_states(
                self.model,
                torch.from_numpy(batch.ids),
                torch.from_numpy(batch.positions),
                torch.from_numpy(batch.branch),
                seen,
                learnt,
            )
            logits = self.model.lm_head(hidden)
        return logits.float(), labels[learnt], seen

    def check(self, batches: int) -> dict[str, float]:
        """Share of answers with every token right, by kind, on pictures never trained on."""
        right, asked = Counter[str](), Counter[str]()
        for index in range(batches):
            batch = self.packer.batch(self.settings.seed + HELD_OUT, index, dense=False)
            with torch.no_grad():
                logits, labels, _ = self.predict(batch)
            wrong = (logits.argmax(-1) != labels).tolist()
            places = (torch.from_numpy(batch.labels) != NO_LABEL).nonzero().tolist()
            failed = {
                (row, int(batch.branch[row, at]))
                for (row, at), bad in zip(places, wrong, strict=True)
                if bad
            }
            for row, kinds in enumerate(batch.kinds):
                for branch, kind in kinds.items():
                    asked[kind] += 1
                    right[kind] += (row, branch) not in failed
        return {kind: right[kind] / asked[kind] for kind in sorted(asked)}

    def save(self, out: Path) -> None:
        """The checkpoint, and beside it what `--resume` needs."""
        out.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.model, self.tokenizer, out)
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "model": self.model.state_dict(),
            "labeller": self.labeller.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        torch.save(state, out / f"{STATE}.part")
        (out / f"{STATE}.part").replace(out / STATE)

    def load(self, out: Path) -> None:
        state = torch.load(out / STATE, weights_only=True)
        # Another number of steps is another plan for the end, which may be made on the way.
        if state["settings"] | {"steps": self.settings.steps} != asdict(self.settings):
            raise SystemExit(f"{out / STATE} was started with other settings: {state['settings']}")
        self.model.load_state_dict(state["model"])
        self.labeller.load_state_dict(state["labeller"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step = state["step"]


def run(training: Training, out: Path, *, check_every: int, save_every: int) -> None:
    """Train to the last step; a first Ctrl-C saves and stops after the current step."""
    stop = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    previous = signal.signal(signal.SIGINT, on_signal)
    settings, losses = training.settings, list[float]()
    began, first = time.monotonic(), training.step
    try:
        with ThreadPoolExecutor(SHARDS) as pool:
            while training.step < settings.steps and not stop:
                losses.append(training.advance(pool))
                if training.step % check_every == 0:
                    report(training, losses, (time.monotonic() - began) / (training.step - first))
                    losses.clear()
                if training.step % save_every == 0:
                    training.save(out)
    finally:
        signal.signal(signal.SIGINT, previous)
    training.save(out)
    print(f"saved {out} at step {training.step} of {settings.steps}", flush=True)


def report(training: Training, losses: list[float], seconds_a_step: float) -> None:
    """One line: step, loss, speed, time left, accuracy by kind."""
    settings = training.settings
    left = (settings.steps - training.step) * seconds_a_step / 60
    shares = {} if settings.seeing(training.step) else training.check(4)
    kinds = " ".join(f"{kind} {share:.2f}" for kind, share in shares.items())
    speed = SHARDS * settings.pictures / seconds_a_step
    print(
        f"step {training.step}/{settings.steps}  loss {sum(losses) / len(losses):.4f}  "
        f"{speed:.0f} pictures/s  {left:.0f} min left  | {kinds}",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m backends.glm.nano.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(
            "Start small to see it work: --steps 300 takes a few minutes and already names the\n"
            "background. The shipped checkpoint is the default: no options but --out. Then\n"
            "measure it with: python -m backends.glm.nano.evaluate --checkpoint DIR"
        ),
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("glm-4.6v-nano"), help="directory to write (%(default)s)")
    add("--steps", type=int, default=defaults.steps, help="steps in all (%(default)s)")
    add(
        "--seed", type=int, default=defaults.seed, help="decides weights and pictures (%(default)s)"
    )
    add("--resume", action="store_true", help="go on from --out, to the same weights in the end")
    add("--check-every", type=int, default=50, help="steps between progress lines (%(default)s)")
    add("--save-every", type=int, default=200, help="steps between saves (%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    # One thread an operation: the parallel work is the shards, and sums keep their order.
    torch.set_num_threads(1)
    training = Training(Settings(seed=args.seed, steps=args.steps), train_tokenizer())
    if args.resume:
        training.load(args.out)
    size = sum(weight.numel() for weight in training.weights)
    print(f"{size / 1e6:.2f} M parameters, seed {args.seed}, {args.steps} steps", flush=True)
    run(training, args.out, check_every=args.check_every, save_every=args.save_every)


if __name__ == "__main__":
    main()
