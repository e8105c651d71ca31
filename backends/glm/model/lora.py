"""LoRA: y = W x + s B A x, with A and B of the request's own adapter (Hu et al., 2021).

Adapters come in the format in which peft saves them. They are never merged into the weights: the
product with W is made once for the whole batch, and what each adapter adds is added to the rows of
its own requests. So requests of several adapters and of the base share every step.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from backends.glm.checkpoint.files import LoadError
from backends.glm.checkpoint.weights import read_header
from backends.glm.model.linears import Linear, Maker, RowOwners

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANK_MAX = 512
# What peft can add that is more than s B A x. An adapter that uses one would be served wrongly.
_UNSUPPORTED = (
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "fan_in_fan_out", "kasa_config",
    "layer_replication", "lora_bias", "megatron_config", "modules_to_save", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
    "velora_config",
)  # fmt: skip
# Initialisations that leave the base's weights alone; the others train against changed ones.
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
_KEY = re.compile(
    r"base_model\.model\.(?:model\.language_model\.layers\.(\d+)\.(?:self_attn|mlp)\.([a-z_]+_proj)"
    r"|(lm_head))\.lora_([AB])\.weight"
)
# Where the lean step multiplies by each matrix, and in which order those stand that share a place.
_PLACES = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "out",
    "gate_up_proj": "gate_up", "down_proj": "down",
}  # fmt: skip
_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What is added to the outputs from `start` on. `down` (rank, in), `up` (out, rank)."""

    start: int
    down: Any
    up: Any
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoraAdapter:
    """A loaded adapter: by the name of a place, e.g. "layers.3.qkv", what it adds there."""

    key: str
    rank: int
    parts: Mapping[str, tuple[Part, ...]]


class AdapterRows:
    """Which rows of a product belong to which adapter; rows of the base belong to none."""

    def __init__(self, owners: Sequence[LoraAdapter | None], device: Any) -> None:
        """`owners`: one for each row, at least one of them an adapter."""
        rows: dict[LoraAdapter, list[int]] = {}
        for row, owner in enumerate(owners):
            if owner is not None:
                rows.setdefault(owner, []).append(row)
        self._groups = [
            (owner, None if len(own) == len(owners) else torch.tensor(own, device=device))
            for owner, own in rows.items()
        ]

    def add(self, name: str, x: Any, y: Any) -> None:
        """Add to `y` (T, out) what the adapters make of `x` (T, in) at this place."""
        for owner, index in self._groups:
            for part in owner.parts.get(name, ()):
                own = x if index is None else x.index_select(0, index)
                more = (own @ part.down.t() @ part.up.t()) * part.scale
                target = y.narrow(1, part.start, more.shape[1])
                if index is None:
                    target.add_(more)
                else:
                    target.index_add_(0, index, more)


def rows_of(owners: Sequence[LoraAdapter | None], device: Any) -> AdapterRows | None:
    """None where every row is the base's."""
    return AdapterRows(owners, device) if any(owners) else None


class AdaptedLinear:
    """A matrix with room for adapters on top."""

    def __init__(self, name: str, inner: Linear) -> None:
        self.out_features = inner.out_features
        self._name, self._inner = name, inner

    def __call__(self, x: Any, rows: RowOwners | None = None) -> Any:
        y = self._inner(x)
        if rows is not None:
            rows.add(self._name, x, y)
        return y


def adapting(make: Maker) -> Maker:
    """A maker whose matrices take adapters."""

    def made(name: str, modules: Sequence[Any]) -> Linear:
        return AdaptedLinear(name, make(name, modules))

    return made


def read_adapter(folder: Path, model: Any) -> LoraAdapter:
    """An adapter in peft's format, for this model and on its device.

    Only safetensors is read: the other format of peft is a pickle, which runs code when opened.

    Raises: LoadError that names the file and what helps.
    """
    config = _config(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = (
            " (adapter_model.bin is a pickle and is never opened)"
            * (folder / "adapter_model.bin").is_file()
        )
        raise LoadError(
            f"{folder} has no {WEIGHTS}{pickled}; save it with save_pretrained(..., "
            "safe_serialization=True)."
        )
    shapes = {tensor.name: tensor.shape for tensor in read_header(file)}
    pairs = _pairs(shapes, file)
    for name, (layer, matrix) in pairs.items():
        _check_shapes(name, shapes, _module(model, layer, matrix), file)
    weights = load_file(file)
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise LoadError(f"{file} has values that are not finite.")
    parts: dict[str, list[Part]] = {}
    ranks = []
    for name, (layer, matrix) in pairs.items():
        down, up = (weights[f"{name}.lora_{half}.weight"] for half in "AB")
        rank = int(down.shape[0])
        ranks.append(rank)
        place = matrix if layer is None else f"layers.{layer}.{_PLACES[matrix]}"
        parts.setdefault(place, []).append(
            Part(
                start=_start(model, layer, matrix),
                down=down.to(model.device, model.dtype),
                up=up.to(model.device, model.dtype),
                scale=float(config["lora_alpha"])
                / (math.sqrt(rank) if config.get("use_rslora") else rank),
            )
        )
    return LoraAdapter(
        key=str(next(_numbers)),
        rank=max(ranks),
        parts={place: tuple(found) for place, found in parts.items()},
    )


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_bytes())
        kind, alpha = str(config["peft_type"]), config["lora_alpha"]
    except OSError as error:
        raise LoadError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{file} is not the configuration of a LoRA adapter of peft.") from error
    if kind != "LORA" or not isinstance(alpha, int | float):
        raise LoadError(f"{file}: peft_type is {kind}; only LORA can be served.")
    used = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if config.get("init_lora_weights", True) not in _INITIAL:
        used.append("init_lora_weights")
    if used:
        raise LoadError(f"{file}: {used[0]} cannot be served; train without it.")
    return dict(config)


def _pairs(shapes: Mapping[str, Any], file: Path) -> dict[str, tuple[int | None, str]]:
    """Each adapted module's name in the file, with its layer and matrix."""
    found: dict[str, tuple[int | None, str]] = {}
    halves: set[str] = set()
    for key in shapes:
        match = _KEY.fullmatch(key)
        matrix = match and (match[3] or match[2])
        if not match or (not match[3] and matrix not in _PLACES):
            raise LoadError(
                f"{file}: {key[:120]} is no part of a LoRA over the language model; train with "
                "target_modules=r'.*language_model\\.layers\\..*\\.(q_proj|k_proj|v_proj|o_proj|"
                "gate_up_proj|down_proj)'."
            )
        name = key.rpartition(".lora_")[0]
        found[name] = (int(match[1]) if match[1] else None, str(matrix))
        halves.add(f"{name}.lora_{match[4]}")
    whole = all(f"{name}.lora_{half}" in halves for name in found for half in "AB")
    if not found or not whole:
        raise LoadError(f"{file} is no whole LoRA adapter: a lora_A or lora_B is missing.")
    return found


def _check_shapes(name: str, shapes: Mapping[str, Any], module: Any, file: Path) -> None:
    down, up = (tuple(shapes[f"{name}.lora_{half}.weight"]) for half in "AB")
    rank = down[0] if len(down) == 2 else 0
    fits = down == (rank, module.in_features) and up == (module.out_features, rank)
    if not 1 <= rank <= RANK_MAX or not fits:
        raise LoadError(
            f"{file}: {name} is {up} x {down}, and the model's matrix is "
            f"{module.out_features} x {module.in_features}: it belongs to another model, or its "
            f"rank is above {RANK_MAX}."
        )


def _module(model: Any, layer: int | None, matrix: str) -> Any:
    if layer is None:
        return model.lm_head
    layers = model.model.language_model.layers
    if layer >= len(layers):
        raise LoadError(f"The adapter has a layer {layer}; the model has {len(layers)}.")
    block = layers[layer]
    return getattr(block.self_attn if hasattr(block.self_attn, matrix) else block.mlp, matrix)


def _start(model: Any, layer: int | None, matrix: str) -> int:
    """Where the matrix's outputs begin among those it is joined with."""
    start = 0
    if layer is not None and _PLACES[matrix] == "qkv":
        for earlier in ("q_proj", "k_proj", "v_proj"):
            if earlier == matrix:
                break
            start += int(_module(model, layer, earlier).out_features)
    return start
