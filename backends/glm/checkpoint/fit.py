"""Does it fit? Asked of config.json and the weights' headers before anything is loaded.

    23.5 GB needed on cuda:0 (weights 20.6, cache 0.4 for 8,192 tokens, working memory 1.8),
    15.8 GB free: use --quantize int8 (needs 13.5 GB).

Loading 20 GB to find out that they do not fit takes minutes, and the error then names an allocation
and not a remedy. Pure arithmetic over sizes; GB are 10^9 bytes. What is an estimate says so. The
cache is counted by the function that lays it out (`capacity`): a size that the operator set
exactly, one that was left open at its least, because what is free decides how much more it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends.glm.checkpoint.capacity import Asked, Capacity, capacity, useful_tokens
from backends.glm.checkpoint.files import LoadError
from backends.glm.checkpoint.weights import Tensor, quantises

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
_FILE_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1}
SCALE_BYTES = 4  # float32, one for each output channel of an int8 matrix
SHORTEST_TOKENS = 1024  # below, a context is of little use to anybody
ALLOCATOR_SHARE = 1.03  # blocks are rounded up and leave gaps
PIXEL_BYTES = 4  # pictures are prepared in float32
GB = 1e9
_CHOOSE = Asked()


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The sizes of a GLM-4V that memory depends on. `picture_tokens`: of the largest picture."""

    layers: int
    width: int
    ffn: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    vision_width: int
    vision_ffn: int
    merger_ffn: int
    patch_values: int
    patches_per_token: int
    picture_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What the operator chose. `dtype`: "float32", "bfloat16", "float16" or "" for each tensor's
    own; `max_model_len`: 0 where left open; `cuda`: the device is one."""

    dtype: str
    int8: bool
    max_model_len: int
    asked: Asked = _CHOOSE
    cuda: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Bytes. `working`: the largest intermediate results of a step, an estimate from above."""

    weights: int
    adapters: int
    cache: int
    cache_tokens: int
    working: int

    @property
    def total(self) -> int:
        """All of it, with what the allocator loses."""
        return int((self.weights + self.adapters + self.cache + self.working) * ALLOCATOR_SHARE)


def read_shape(folder: Path) -> Shape:
    """From config.json and preprocessor_config.json.

    Raises: LoadError that names the file and the field.
    """
    config = _json(folder / "config.json")
    text, vision = config.get("text_config", config), config.get("vision_config", {})
    processor = folder / "preprocessor_config.json"
    size = _json(processor).get("size", {}) if processor.is_file() else {}
    try:
        heads = int(text["num_attention_heads"])
        merge, patch = int(vision["spatial_merge_size"]), int(vision["patch_size"])
        frames = int(vision["temporal_patch_size"])
        context = int(text["max_position_embeddings"])
        token_pixels = (merge * patch) ** 2
        # The processor's limit counts the pixels of `frames` frames, of which a picture is one.
        pixels = int(size.get("longest_edge", frames * token_pixels * context)) // frames
        return Shape(
            layers=int(text["num_hidden_layers"]),
            width=int(text["hidden_size"]),
            ffn=int(text["intermediate_size"]),
            kv_heads=int(text["num_key_value_heads"]),
            head_dim=int(text.get("head_dim") or int(text["hidden_size"]) // heads),
            vocabulary=int(text["vocab_size"]),
            context=context,
            vision_width=int(vision["hidden_size"]),
            vision_ffn=int(vision["out_hidden_size"]),  # of a block's MLP, in this family
            merger_ffn=int(vision["intermediate_size"]),
            patch_values=int(vision.get("in_channels", 3)) * frames * patch**2,
            patches_per_token=merge**2,
            picture_tokens=max(1, pixels // token_pixels),
        )
    except KeyError as error:
        raise LoadError(f"{folder / 'config.json'} has no {error.args[0]}.") from None
    except (TypeError, ValueError) as error:
        raise LoadError(f"{folder / 'config.json'}: {error}.") from error


def need(
    shape: Shape, tensors: Sequence[Tensor], setting: Setting, adapters: Sequence[Tensor] = ()
) -> Need:
    """What serving takes beside the process itself, in bytes on the model's device.

    `adapters`: the tensors of the LoRA adapters, which are kept in the model's numbers.
    """
    made = laid_out(shape, setting)
    return Need(
        weights=sum(_tensor_bytes(tensor, setting) for tensor in tensors),
        adapters=sum(tensor.elements for tensor in adapters) * _number_bytes(setting),
        cache=made.cache_bytes(token_bytes(shape, setting)),
        cache_tokens=made.kv_tokens,
        working=_working(shape, setting, made),
    )


def laid_out(shape: Shape, setting: Setting) -> Capacity:
    """What will be made; where the size was left open, the least that will be."""
    longest = min(setting.max_model_len or shape.context, shape.context)
    return capacity(
        setting.asked,
        cuda=setting.cuda,
        free_bytes=0,
        token_bytes=token_bytes(shape, setting),
        max_model_len=longest,
        least_tokens=useful_tokens(longest, asked_for=setting.max_model_len > 0),
    )


def token_bytes(shape: Shape, setting: Setting) -> int:
    """Of one entry: a key and a value for every layer and every key-value head."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * _number_bytes(setting)


def check_fits(
    shape: Shape,
    tensors: Sequence[Tensor],
    setting: Setting,
    *,
    free_bytes: int,
    device: str,
    adapters: Sequence[Tensor] = (),
) -> Need:
    """What is needed, if it fits.

    Raises: LoadError with the figures and the settings that would fit.
    """
    needed = need(shape, tensors, setting, adapters)
    if needed.total <= free_bytes:
        return needed
    found = []
    for attempts in _remedies(shape, setting):
        for flags, changed in attempts:
            if (total := need(shape, tensors, changed, adapters).total) <= free_bytes:
                found.append(f"{flags} (needs {_gb(total)} GB)")
                break
    # One change that is enough before two that are.
    single = [remedy for remedy in found if remedy.count("--") == 1]
    remedy = (
        "use " + ", or ".join(single or found)
        if found
        else "no setting makes it fit; take a device with more memory or a smaller checkpoint"
    )
    adapted = f"adapters {_gb(needed.adapters)}, " if needed.adapters else ""
    raise LoadError(
        f"{_gb(needed.total)} GB needed on {device} (weights {_gb(needed.weights)}, {adapted}cache "
        f"{_gb(needed.cache)} for {needed.cache_tokens:,} tokens, working memory "
        f"{_gb(needed.working)}), {_gb(free_bytes)} GB free: {remedy}."
    )


Attempt = tuple[str, Setting]


def _remedies(shape: Shape, setting: Setting) -> list[list[Attempt]]:
    """Changes that may help, with the flags that make them; of each list the first that does."""
    smaller: list[Attempt] = []
    if not setting.int8:
        smaller.append(("--quantize int8", replace(setting, int8=True)))
    if setting.dtype == "float32":
        smaller.append(("--dtype bfloat16", replace(setting, dtype="bfloat16")))
    if setting.asked.kept_tokens:
        forgetful = replace(setting.asked, kept_tokens=0)
        smaller.append(("--kept-tokens 0", replace(setting, asked=forgetful)))
    shorter = [_shorter(shape, changed, flags) for flags, changed in [("", setting), *smaller]]
    return [[attempt] for attempt in smaller] + shorter


def _shorter(shape: Shape, setting: Setting, flags: str) -> list[Attempt]:
    """Ever half the cache: by its own flag where the operator set that, else by the context."""
    attempts: list[Attempt] = []
    tokens = laid_out(shape, setting).kv_tokens // 2
    while tokens >= SHORTEST_TOKENS:
        if setting.asked.kv_tokens:
            fewer = replace(setting.asked, kv_tokens=tokens)
            flag, changed = "--kv-tokens", replace(setting, asked=fewer)
        else:
            flag, changed = "--max-model-len", replace(setting, max_model_len=tokens)
        attempts.append((f"{flags} {flag} {tokens}".strip(), changed))
        tokens //= 2
    return attempts


def _tensor_bytes(tensor: Tensor, setting: Setting) -> int:
    if setting.int8 and quantises(tensor.name, len(tensor.shape)):
        return tensor.elements + tensor.shape[0] * SCALE_BYTES
    own = _FILE_BYTES.get(tensor.dtype, 4)
    return tensor.elements * (BYTES_OF[setting.dtype] if setting.dtype else own)


def _number_bytes(setting: Setting) -> int:
    return BYTES_OF[setting.dtype] if setting.dtype else 2  # GPUs serve a checkpoint's 16 bits


def _working(shape: Shape, setting: Setting, made: Capacity) -> int:
    """The larger of a text step and the encoding of the largest picture: they take turns.

    Of a step: residual, normed input, attention's and the two halves of the feed-forward's output
    for every prompt token; and for every slot the logits in float32 with two copies for sampling.
    """
    number = _number_bytes(setting)
    step = made.step_tokens * (6 * shape.width + 3 * shape.ffn) * number
    step += made.slots * shape.vocabulary * 3 * 4
    longest = setting.max_model_len or shape.context
    picture = min(shape.picture_tokens, longest)
    patches = picture * shape.patches_per_token
    vision = patches * (shape.patch_values * (PIXEL_BYTES + number))
    vision += patches * (7 * shape.vision_width + 3 * shape.vision_ffn) * number
    vision += picture * 3 * shape.merger_ffn * number
    return max(step, vision)


def _gb(count: float) -> str:
    return f"{count / GB:.1f}" if count >= GB / 20 else f"{count / GB:.3f}"


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise LoadError(f"{file} is not valid JSON.") from error
    if not isinstance(content, dict):
        raise LoadError(f"{file} is not a JSON object.")
    return content
