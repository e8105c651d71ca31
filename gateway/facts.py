"""From a request to what the decision needs to know of it: sizes and rights, never its text."""

from __future__ import annotations

import secrets
import time
from collections.abc import Container, Iterable, Mapping, Sequence

import msgspec
from multidict import CIMultiDictProxy

from backends import media
from backends.chat import ChatRequest, ImagePart, ImageUrl, TextPart
from backends.limits import IMAGES_MAX
from gateway.errors import GatewayError
from gateway.gateway import Gateway
from gateway.keys import LABEL_VALUE
from gateway.pool.prefixes import prefixes_of
from gateway.wire.base import Asked
from policies import affinity, sensitivity, tokens
from policies.types import (
    Capability,
    Facts,
    ImageSize,
    Prefix,
    Principal,
    Site,
)

DEADLINE_MS_MAX = 3_600_000


def new_request_id() -> str:
    """Sorts by time, as long as a UUID, cannot be guessed (80 random bits)."""
    return f"yz-{int(time.time() * 1000):012x}{secrets.token_hex(10)}"


def facts_of(
    request_id: str,
    principal: Principal,
    asked: Asked,
    headers: CIMultiDictProxy[str],
    gateway: Gateway,
) -> Facts:
    """Raises GatewayError: a picture that cannot be read, a header that is not a number, a model
    that the token does not allow."""
    chat, config = asked.chat, gateway.config
    side, model = _side(chat.model)
    base, adapter = adapter_of(model, gateway.rules.routes)
    route = gateway.rules.routes.get(base)
    name = route.name if route is not None else model
    # What an adapter has learned is its owner's: a token that names models must name it, too.
    full = f"{name}:{adapter}" if adapter else name
    if principal.models and full not in principal.models and model not in principal.models:
        text = f"this token allows the models {', '.join(principal.models)}, not {model!r}"
        raise GatewayError(403, "model_not_allowed", text, param="model")
    pictures = [part.image_url for part in _parts(chat) if isinstance(part, ImagePart)]
    if len(pictures) > IMAGES_MAX:
        text = f"{len(pictures)} pictures in one request; at most {IMAGES_MAX}"
        raise GatewayError(400, "too_many_images", text, param="messages")
    label = sensitivity.resolve(
        principal,
        headers.getall("x-yuzui-sensitivity", ()),
        asked.label,
        has_images=bool(pictures),
        rules=gateway.label_rules,
    )
    chars, utf8_bytes = _measure(_texts(chat))
    prefixes: tuple[Prefix, ...] = ()
    seen: tuple[str, ...] = ()
    if gateway.pool.size > 1:  # with one worker there is nothing to choose
        prefixes, seen = prefixes_of(chat, affinity.salt(principal.tenant, label.level))
    wish = chat.max_completion_tokens or chat.max_tokens
    usual = gateway.history.bound(principal.tenant, name)
    # Without a wish: more than the default where this caller's answers are long, and when money
    # is short no more than they usually need.
    most = max(config.limits.output_tokens_default, usual or 0) if wish is None else wish
    output_max = min(most, config.limits.output_tokens_max)
    shorter = usual if usual is not None and usual < output_max else 0
    return Facts(
        request_id=request_id,
        tenant=principal.tenant,
        scopes=(*scopes_of(principal), *labels_of(asked.metadata, config.budgets.metadata_labels)),
        model=name,
        adapter=adapter,
        side=side,
        label=label,
        needs=_needs(chat),
        images=tuple(
            _size(picture, chat) for picture in pictures if not media.is_remote(picture.url)
        ),
        remote_images=sum(media.is_remote(picture.url) for picture in pictures),
        prompt_tokens_max=tokens.text_tokens_max(utf8_bytes, messages=len(chat.messages)),
        prompt_tokens_likely=tokens.text_tokens_likely(
            chars, utf8_bytes, messages=len(chat.messages)
        ),
        output_tokens_max=output_max,
        output_tokens_likely=gateway.world.likely_output_tokens(name, output_max),
        output_tokens_tight=shorter if wish is None else 0,
        output_tokens_first=shorter,
        choices=chat.n or 1,
        deadline_ms=_deadline(headers.getall("x-yuzui-deadline-ms", ())),
        slo=principal.slo,
        stream=bool(chat.stream),
        prefixes=prefixes,
        pictures=seen,
    )


def adapter_of(model: str, routes: Container[str]) -> tuple[str, str]:
    """`BASE:NAME` asks for an adapter, if BASE is a public name; a public name may have a colon."""
    base, _, adapter = model.rpartition(":")
    return (base, adapter) if model not in routes and adapter and base in routes else (model, "")


def scopes_of(principal: Principal) -> tuple[str, ...]:
    """Budget scopes of the caller, kind:name; those of the attempt are added by the plan."""
    scopes = [f"tenant:{principal.tenant}", f"user:{principal.subject}", f"key:{principal.key_id}"]
    if principal.org:
        scopes.append(f"org:{principal.org}")
    scopes += [scope for scope in principal.budgets if scope not in scopes]
    return tuple(scopes)


def labels_of(metadata: Mapping[str, object], allowed: Iterable[str]) -> tuple[str, ...]:
    """Scopes label:kind=value from the entries of a request's metadata that the operator named.

    They are the caller's own word: they can add a budget, and never take one away. Raises
    GatewayError.
    """
    scopes = []
    for kind in allowed:
        value = metadata.get(kind)
        if value is None:
            continue
        if not isinstance(value, str) or not LABEL_VALUE.fullmatch(value):
            text = f"metadata.{kind} must be a plain name of at most 80 letters, digits, . _ @ / -"
            raise GatewayError(400, "invalid_value", text, param=f"metadata.{kind}")
        scopes.append(f"label:{kind}={value}")
    return tuple(scopes)


def _side(model: str) -> tuple[Site | None, str]:
    """`local/...` or `cloud/...` in front of a public name asks for a side."""
    for site in Site:
        if model.startswith(f"{site.value}/"):
            return site, model[len(site.value) + 1 :]
    return None, model


def _parts(chat: ChatRequest) -> Iterable[TextPart | ImagePart]:
    for message in chat.messages:
        if isinstance(message.content, list):
            yield from message.content


def _texts(chat: ChatRequest) -> Iterable[str]:
    """Everything that becomes prompt text, tools and schemas included."""
    for message in chat.messages:
        if isinstance(message.content, str):
            yield message.content
        for text in (message.name, message.reasoning_content, message.tool_call_id):
            if text:
                yield text
        for call in message.tool_calls or ():
            yield call.id
            yield call.function.name
            yield call.function.arguments
    for part in _parts(chat):
        if isinstance(part, TextPart):
            yield part.text
    for extra in (chat.tools, chat.tool_choice, chat.response_format, chat.structured_outputs):
        if extra is not None:
            yield msgspec.json.encode(extra).decode()


def _measure(texts: Iterable[str]) -> tuple[int, int]:
    """Characters and UTF-8 bytes together."""
    chars = utf8_bytes = 0
    for text in texts:
        chars += len(text)
        utf8_bytes += len(text) if text.isascii() else len(text.encode())
    return chars, utf8_bytes


def _needs(chat: ChatRequest) -> frozenset[Capability]:
    needs = set()
    if any(isinstance(part, ImagePart) for part in _parts(chat)):
        needs.add(Capability.VISION)
    if chat.tools and chat.tool_choice != "none":
        needs.add(Capability.TOOLS)
    kind = chat.response_format.get("type") if isinstance(chat.response_format, dict) else None
    if kind not in (None, "text") or chat.structured_outputs is not None:
        needs.add(Capability.STRUCTURED)
    if chat.logprobs:
        needs.add(Capability.LOGPROBS)
    if (chat.n or 1) > 1:
        needs.add(Capability.CHOICES)
    return frozenset(needs)


def _size(picture: ImageUrl, chat: ChatRequest) -> ImageSize:
    try:
        info = media.sniff(picture.url)
    except media.MediaError as error:
        raise GatewayError(400, error.code, error.message, param=_where(picture, chat)) from None
    return ImageSize(width=info.width, height=info.height, detail=picture.detail)


def _where(picture: ImageUrl, chat: ChatRequest) -> str:
    """The path of a picture in the request, in the words of our own worker."""
    for i, message in enumerate(chat.messages):
        for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if isinstance(part, ImagePart) and part.image_url is picture:
                return f"messages[{i}].content[{j}].image_url"
    return "messages"


def _deadline(values: Sequence[str]) -> int | None:
    """Milliseconds to the first token. Of several the shortest counts."""
    if not values:
        return None
    try:
        deadlines = [int(value) for value in values]
    except ValueError:
        deadlines = [0]
    if not all(1 <= value <= DEADLINE_MS_MAX for value in deadlines):
        text = f"x-yuzui-deadline-ms must be a whole number from 1 to {DEADLINE_MS_MAX}"
        raise GatewayError(400, "invalid_value", text, param="x-yuzui-deadline-ms")
    return min(deadlines)
