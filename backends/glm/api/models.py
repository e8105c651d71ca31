"""HTTP: what is served, as a list and one by one, in OpenAI's form with what a gateway asks for."""

from __future__ import annotations

from typing import Any

from backends.glm.api.service import Service
from backends.glm.errors import WorkerUnavailable, model_not_found

# What a request may need beyond text, in the words of `policies.types.Capability`, and reasoning.
CAPABILITIES = ("vision", "reasoning", "tools", "structured", "logprobs", "choices")


def listed(service: Service) -> dict[str, Any]:
    """The base and, as vLLM lists them, each adapter as a model that names what it was trained on.

    Raises: WorkerUnavailable while the model loads.
    """
    if service.serving is None:
        raise WorkerUnavailable(
            code="worker_loading", message="This worker is still loading its model."
        )
    base, *aliases = service.names
    model = {
        "id": base,
        "object": "model",
        "created": service.ready_s,
        "owned_by": "yuzui",
        "max_model_len": service.serving.prompts.max_model_len,
        "capabilities": list(CAPABILITIES),
        "aliases": aliases,
    }
    adapted = [
        {
            **model,
            "id": f"{base}:{name}",
            "parent": base,
            "aliases": [f"{alias}:{name}" for alias in aliases],
        }
        for name in service.serving.adapters.loaded
    ]
    return {"object": "list", "data": [model, *adapted]}


def described(service: Service, name: str) -> dict[str, Any]:
    """One of them, by its name or an alias; the name asked for is the one told.

    Raises: WorkerError 404, WorkerUnavailable as `listed`.
    """
    for model in listed(service)["data"]:
        if name == model["id"] or name in model["aliases"]:
            return {**model, "id": name}
    raise model_not_found(name, served=service.names[0])
