"""GLM's processor without its part for videos, which alone needs torchvision."""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor, Glm4vConfig, Glm46VProcessor


class PictureProcessor(Glm46VProcessor):  # type: ignore[misc]
    """Its parts are what the arguments are named after, so there is no video_processor."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def register() -> None:
    """From now on AutoProcessor makes it for every GLM-4V checkpoint of this process."""
    AutoProcessor.register(Glm4vConfig, PictureProcessor, exist_ok=True)
