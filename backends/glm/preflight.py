"""Before loading: the options and the device's free memory put to `fit`."""

from __future__ import annotations

import torch

from backends.glm.checkpoint.files import check_files
from backends.glm.checkpoint.fit import Need, Setting, check_fits, read_shape
from backends.glm.checkpoint.memory import host_free_bytes
from backends.glm.checkpoint.weights import read_tensors
from backends.glm.engine.capacity import SLOTS_CPU, SLOTS_CUDA, STEP_TOKENS_CPU, STEP_TOKENS_CUDA
from backends.glm.model.load import find_device, find_dtype
from backends.glm.options import Options


def ensure_fits(options: Options) -> Need:
    """What serving will need, if the device has it.

    Raises: LoadError with the figures and the settings that would fit.
    """
    check_files(options.model)
    device = find_device(options.device)
    cuda = device.type == "cuda"
    free_bytes = torch.cuda.mem_get_info(device)[0] if cuda else host_free_bytes()
    tensors = read_tensors(options.model)
    dtype = find_dtype(options.dtype, device, tensors)
    return check_fits(
        read_shape(options.model),
        tensors,
        setting_of(options, dtype, cuda=cuda),
        free_bytes=free_bytes,
        device=str(device),
    )


def setting_of(options: Options, dtype: str, *, cuda: bool) -> Setting:
    """The options, with what `capacity` and `load` choose where they leave it open."""
    asked = options.capacity
    return Setting(
        dtype=dtype,
        int8=options.quantize == "int8",
        max_model_len=options.max_model_len or 0,
        kv_tokens=asked.kv_tokens,
        slots=asked.slots or (SLOTS_CUDA if cuda else SLOTS_CPU),
        step_tokens=asked.step_tokens or (STEP_TOKENS_CUDA if cuda else STEP_TOKENS_CPU),
    )
