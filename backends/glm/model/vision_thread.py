"""The thread that encodes pictures, beside the one that decodes text.

A request's pictures are looked at once it has its rows, so features are held for running requests
only, and are never more than the cache has entries. Pictures of several requests are encoded
together; those seen lately are remembered, per tenant, by their content's hash.

The thread lives as long as there is something to look at. One that has run parallel loops keeps its
helpers of OpenMP until it ends, and while a process has more of them than cores, libgomp lets them
sleep between loops: every product of the decoding thread would begin with waking one (two cores,
245 M parameters: 12 % of a step).
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from backends.glm.model.vision import Encoder
from backends.glm.types import Picture

_log = logging.getLogger(__name__)

# Patches encoded at once: four pictures of 224 x 224. More would only delay the first of them.
BATCH_PATCHES = 1024

Key = tuple[str, bytes]


@dataclass(eq=False, slots=True)
class Encoding:
    """The pictures of one request. `found`: features of each, None until encoded."""

    keys: list[Key]
    pictures: list[Picture]
    found: list[Any]
    on_ready: Callable[[Exception | None], None]

    @property
    def ready(self) -> bool:
        """All of them are encoded."""
        return all(one is not None for one in self.found)

    @property
    def features(self) -> Any:
        """Of all pictures in order, (tokens, width); they must be `ready`."""
        return self.found[0] if len(self.found) == 1 else torch.cat(self.found)


class VisionThread:
    """Encodes and remembers. `encode` and `cancel` may be called from any thread."""

    def __init__(self, encoder: Encoder, *, kept_bytes: int) -> None:
        """`kept_bytes`: features remembered, beside those of running requests."""
        self._encoder = encoder
        self._kept_bytes = kept_bytes
        self._bytes = 0
        self._kept: OrderedDict[Key, Any] = OrderedDict()
        self._wanted: list[Encoding] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self.asked = self.remembered = self.batches = 0

    @property
    def waiting(self) -> int:
        """Requests whose pictures are not encoded yet."""
        return len(self._wanted)

    def encode(
        self, pictures: Sequence[Picture], tenant: str, on_ready: Callable[[Exception | None], None]
    ) -> Encoding:
        """Begin to look. If the features are not there yet, `on_ready` is called once, from this
        thread, when they are or cannot be."""
        keys = [(tenant, picture.key) for picture in pictures]
        with self._lock:
            encoding = Encoding(keys, list(pictures), [self._recall(key) for key in keys], on_ready)
            self.asked += len(keys)
            self.remembered += sum(one is not None for one in encoding.found)
            if not encoding.ready:
                self._wanted.append(encoding)
                if self._thread is None and not self._stopping:
                    self._thread = threading.Thread(
                        target=self._loop, name="glm-vision", daemon=True
                    )
                    self._thread.start()
        return encoding

    def cancel(self, encoding: Encoding) -> None:
        """Nobody waits for these any more."""
        with self._lock:
            if encoding in self._wanted:
                self._wanted.remove(encoding)

    def stop(self, timeout_s: float) -> None:
        """End the thread, waiting for the pictures it looks at."""
        with self._lock:
            self._stopping = True
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _recall(self, key: Key) -> Any | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _loop(self) -> None:
        while True:
            with self._lock:
                batch = {} if self._stopping else self._batch()
                if not batch:
                    self._thread = None
                    return
            self._encode(batch)

    def _batch(self) -> dict[Key, Picture]:
        """Pictures to encode next, each once, those of who came first in front."""
        batch: dict[Key, Picture] = {}
        patches = 0
        for encoding in self._wanted:
            for key, picture, found in zip(
                encoding.keys, encoding.pictures, encoding.found, strict=True
            ):
                if found is not None or key in batch:
                    continue
                patches += len(picture.values)
                if batch and patches > BATCH_PATCHES:
                    return batch
                batch[key] = picture
        return batch

    def _encode(self, batch: dict[Key, Picture]) -> None:
        try:
            with torch.inference_mode():
                encoded = self._encoder.encode(list(batch.values()))
            # Cut out of the batch's tensor, so that one kept picture does not keep them all.
            features = [one.clone() for one in encoded]
        except Exception as error:  # a picture that breaks the encoder must not blind the others
            if len(batch) > 1:
                kind = type(error).__name__
                _log.warning(
                    "%d pictures failed together (%s); each is tried alone", len(batch), kind
                )
                for key, picture in batch.items():
                    self._encode({key: picture})
                return
            self._done(batch, None, error)
            return
        self._done(batch, features, None)

    def _done(
        self, batch: dict[Key, Picture], features: list[Any] | None, error: Exception | None
    ) -> None:
        over: list[Encoding] = []
        with self._lock:
            self.batches += 1
            for index, key in enumerate(batch):
                if features is not None:
                    self._keep(key, features[index])
                for encoding in self._wanted:
                    for place, own in enumerate(encoding.keys):
                        if own == key and features is not None:
                            encoding.found[place] = features[index]
            for encoding in list(self._wanted):
                failed = error is not None and not batch.keys().isdisjoint(encoding.keys)
                if failed or encoding.ready:
                    self._wanted.remove(encoding)
                    over.append(encoding)
        for encoding in over:
            encoding.on_ready(None if encoding.ready else error)

    def _keep(self, key: Key, features: Any) -> None:
        if key in self._kept:
            return
        self._kept[key] = features
        self._bytes += features.nbytes
        while self._bytes > self._kept_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
