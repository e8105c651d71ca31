"""Before loading: the options and the device's free memory put to `fit`."""

from __future__ import annotations

import torch

from backends.glm.checkpoint.files import check_files
from backends.glm.checkpoint.fit import Need, Setting, check_fits, read_shape
from backends.glm.checkpoint.memory import host_free_bytes
from backends.glm.checkpoint.weights import Tensor, read_header, read_tensors
from backends.glm.engine.remembered import Remembered
from backends.glm.model.load import find_device, find_dtype
from backends.glm.model.lora import WEIGHTS
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
        adapters=_adapter_tensors(options),
    )


def setting_of(options: Options, dtype: str, *, cuda: bool) -> Setting:
    """The options, with the numbers that `load` chooses where they leave it open."""
    return Setting(
        dtype=dtype,
        int8=options.quantize == "int8",
        max_model_len=options.max_model_len or 0,
        asked=options.capacity,
        cuda=cuda,
    )


def _adapter_tensors(options: Options) -> list[Tensor]:
    """Of the adapters that are loaded at the start; what is wrong with one says who reads it."""
    files = [folder / WEIGHTS for _, folder in options.adapters]
    if options.adapter_dir is not None:
        inside = options.adapter_dir.resolve()
        paths = Remembered(inside, options.worker).read().values()
        files += [inside / path / WEIGHTS for path in paths if "\0" not in path]
    return [tensor for file in files if file.is_file() for tensor in read_header(file)]
