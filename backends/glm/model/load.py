"""A checkpoint folder -> model, tokenizer, image processor and every number that depends on them.

Nothing is assumed about ids, limits or the class: GLM-4.1V, GLM-4.6V and GLM-4.6V-Flash share code
but not their token ids, and a wrong id does not fail, it answers nonsense. What the files disagree
about is refused here, with the file's name and what to do.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from backends.glm.answer.grammar import Grammars
from backends.glm.checkpoint.files import LoadError, check_files
from backends.glm.checkpoint.tokenizer import GlmTokenizer, UnsupportedTokenizer
from backends.glm.checkpoint.weights import Tensor, read_tensors
from backends.glm.model.quantize import Int8Config
from backends.glm.request.images import Vision
from backends.glm.request.limits import Limits
from backends.glm.request.prepare import Preparer
from backends.glm.request.prompt import PromptBuilder
from backends.glm.types import Sampling

DTYPES = ("float32", "bfloat16", "float16")
# x86: AVX-512 of AMD Zen 4 and Intel Cooper Lake on, tiles of Intel Sapphire Rapids on; Arm: v8.6.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A loaded checkpoint. `max_model_len`: prompt and output tokens together."""

    model: Any = field(repr=False)
    device: Any
    tokenizer: GlmTokenizer
    prompts: PromptBuilder
    grammars: Grammars
    stop_ids: frozenset[int]
    sampling: Sampling
    max_model_len: int

    def preparer(self, limits: Limits) -> Preparer:
        """What requests are prepared with."""
        return Preparer(
            prompts=dataclasses.replace(self.prompts, limits=limits),
            grammars=self.grammars,
            stop_ids=self.stop_ids,
            sampling=self.sampling,
            limits=limits,
        )


def load_checkpoint(
    path: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    max_model_len: int | None = None,
) -> Checkpoint:
    """Load a checkpoint folder for inference.

    `device`: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1"; `dtype`: "auto" (see
    `find_dtype`), "float32", "bfloat16" or "float16";
    `quantize`: "none", or "int8" for matrices in one byte a weight; `max_model_len` lowers the
    checkpoint's limit.

    Raises: LoadError.
    """
    check_files(path)
    target = find_device(device)
    config = _read(path, "config.json", reader=AutoConfig.from_pretrained)
    fast = _read(path, "tokenizer.json", reader=AutoTokenizer.from_pretrained)
    processor = _read(
        path, "preprocessor_config.json", reader=AutoImageProcessor.from_pretrained, backend="pil"
    )
    tokenizer, vision = _tokenizer(fast), _vision(config, processor)
    limit = _context(config, max_model_len)
    image_token_id = _image_token_id(config, tokenizer)
    generation = _generation_config(path)
    stop_ids = _stop_ids(generation, config, fast)
    width = int(config.get_text_config().vocab_size)
    model = _read(
        path,
        "the weights",
        reader=AutoModelForImageTextToText.from_pretrained,
        config=config,
        dtype=find_dtype(dtype, target, read_tensors(path)) or "auto",
        use_safetensors=True,
        **({"quantization_config": Int8Config()} if quantize == "int8" else {}),
    )
    if not hasattr(getattr(model, "model", None), "get_rope_index"):
        raise LoadError(f"{config.model_type} is not a model of the GLM-4V family (config.json).")
    return Checkpoint(
        model=model.to(target).eval(),
        device=target,
        tokenizer=tokenizer,
        prompts=PromptBuilder(
            tokenizer=tokenizer,
            vision=vision,
            image_token_id=image_token_id,
            max_model_len=limit,
        ),
        grammars=Grammars(tokenizer, width=width, stop_ids=stop_ids),
        stop_ids=stop_ids,
        sampling=_sampling(generation),
        max_model_len=limit,
    )


def _read(path: Path, what: str, *, reader: Any, **options: Any) -> Any:
    """Call one of transformers' from_pretrained without network and without remote code."""
    try:
        return reader(str(path), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises anything from KeyError to RuntimeError here
        raise LoadError(
            f"{what} of {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def find_device(name: str) -> Any:
    """The torch device that `--device` means. Raises: LoadError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LoadError(f"--device {name} is unknown; use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LoadError(f"--device {name}: no CUDA device is visible; use --device cpu.")
    return device


def find_dtype(name: str, device: Any, tensors: Iterable[Tensor]) -> str:
    """The number type that `--dtype` means; "": each tensor's own.

    "auto" is the checkpoint's own on a GPU. On a CPU it is bfloat16 if the weights are and the CPU
    multiplies in it: others convert at every step, which costs more than it saves. Else float32.

    Raises: LoadError.
    """
    if name == "auto":
        if device.type == "cuda":
            return ""
        numbers: Counter[str] = Counter()
        for tensor in tensors:
            numbers[tensor.dtype] += tensor.elements
        narrow = numbers["BF16"] > numbers.total() / 2 and cpu_multiplies_bfloat16()
        return "bfloat16" if narrow else "float32"
    if name not in DTYPES:
        raise LoadError(f"--dtype {name} is unknown; use auto, {', '.join(DTYPES)}.")
    return name


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in BFLOAT16_INSTRUCTIONS)


def _tokenizer(fast: Any) -> GlmTokenizer:
    if not fast.chat_template:
        raise LoadError(
            "The checkpoint has no chat template (chat_template.jinja): copy it from the original."
        )
    if not fast.is_fast:
        raise LoadError("tokenizer.json is not a fast tokenizer: save it with `tokenizers`.")
    try:
        return GlmTokenizer(fast)
    except UnsupportedTokenizer as error:
        raise LoadError(f"tokenizer.json: {error}; GLM-4V checkpoints have one.") from error


def _vision(config: Any, processor: Any) -> Vision:
    encoder = config.vision_config
    for ours, theirs in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ):
        if getattr(processor, ours, None) != getattr(encoder, theirs, None):
            raise LoadError(
                f"preprocessor_config.json and config.json disagree about {ours}: "
                "they belong to different checkpoints."
            )
    return Vision(processor)


def _context(config: Any, lowered_to: int | None) -> int:
    limit = int(config.get_text_config().max_position_embeddings)
    if lowered_to is None:
        return limit
    if not 1 < lowered_to <= limit:
        raise LoadError(f"--max-model-len must be between 2 and {limit} (config.json).")
    return lowered_to


def _image_token_id(config: Any, tokenizer: GlmTokenizer) -> int:
    token_id = int(config.image_token_id)
    if token_id not in tokenizer.control_ids:
        raise LoadError(
            f"config.json says image_token_id {token_id}, but tokenizer.json has no control token "
            "with that id: they belong to different checkpoints."
        )
    return token_id


def _generation_config(path: Path) -> dict[str, Any]:
    """What generation_config.json sets itself; transformers' object would add its own defaults."""
    file = path / "generation_config.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise LoadError(f"{file} is not valid JSON.") from error
    if not isinstance(content, dict):
        raise LoadError(f"{file} is not a JSON object.")
    return content


def _stop_ids(generation: dict[str, Any], config: Any, fast: Any) -> frozenset[int]:
    """All ids that end a turn; GLM has several, because a tool call ends like a turn."""
    candidates: Iterable[Any] = (
        generation.get("eos_token_id"),
        getattr(config.get_text_config(), "eos_token_id", None),
        getattr(config, "eos_token_id", None),
        fast.eos_token_id,
    )
    for ids in candidates:
        if ids is not None and ids != []:
            return frozenset(ids if isinstance(ids, list) else [ids])
    raise LoadError("No stop ids: generation_config.json should set eos_token_id.")


def _sampling(generation: dict[str, Any]) -> Sampling:
    """Defaults for what a caller does not set: the checkpoint's where given, else OpenAI's."""
    names = ("temperature", "top_p", "top_k", "repetition_penalty")
    given = {name: generation[name] for name in names if generation.get(name) is not None}
    if generation.get("do_sample") is False:
        given["temperature"] = 0.0  # the file says greedy, whatever temperature it also carries
    return Sampling(**given)
