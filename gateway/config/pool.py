"""The settings of the local pool: who is in it, who finds it, how it is used and looked after."""

from __future__ import annotations

import shlex
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from backends.pool.members import Member
from gateway.config.read import Invalid, Secret
from gateway.config.schema import LevelName, Name, Seconds, Section, check_url
from policies.sensitivity import NAMES
from policies.types import Capability

EngineName = Literal["auto", "yuzui", "vllm", "sglang", "openai"]
Slots = Annotated[int, Meta(ge=1, le=100_000, description="requests at once")]
Weight = Annotated[float, Meta(gt=0, le=1_000)]


class WorkerConfig(Section, frozen=True, kw_only=True):
    """One engine that runs already.

    url:          its base URL, without /v1
    name:         its id in the pool; None: w1, w2 and so on
    engine:       auto: it is recognised by what it publishes
    weight:       a worker of weight 2 is preferred to an equally loaded one of weight 1
    slots:        requests that it runs at once, where the engine does not say (--max-num-seqs)
    capabilities: what it can do, where the engine does not say
    labels:       the levels whose requests it may see; empty: all.   tenants: the same by tenant
    api_key:      for an engine that wants one (vLLM and SGLang: --api-key)
    """

    url: str
    name: Name | None = None
    engine: EngineName = "auto"
    weight: Weight = 1.0
    slots: Slots | None = None
    capabilities: tuple[Capability, ...] | None = None
    labels: tuple[LevelName, ...] = ()
    tenants: tuple[Name, ...] = ()
    api_key: Secret | None = None

    def __post_init__(self) -> None:
        check_url(self.url, "url")

    def member(self, name: str) -> Member:
        """The same in the vocabulary of the pool; `name` unless it has one of its own."""
        return Member(
            name=self.name or name,
            url=self.url,
            engine="" if self.engine == "auto" else self.engine,
            weight=self.weight,
            slots=self.slots,
            capabilities=None if self.capabilities is None else frozenset(self.capabilities),
            levels=frozenset(NAMES[label] for label in self.labels),
            tenants=frozenset(self.tenants),
            api_key=None if self.api_key is None else self.api_key.reveal(),
        )


class DnsConfig(WorkerConfig, frozen=True, kw_only=True):
    """Every address of a name is a worker, such as a headless service of Kubernetes. What is said
    of a worker is said of each of them.

    url:     http://name:port; every_s: how often the name is looked up
    """

    every_s: Seconds = 5.0

    def __post_init__(self) -> None:
        WorkerConfig.__post_init__(self)
        parts = urlsplit(self.url)
        if parts.scheme != "http" or parts.path.strip("/"):
            text = "is asked by address: expected http://name:port, without https and path"
            raise Invalid("url", f"{self.url!r} {text}")


class PoolConfig(Section, frozen=True, kw_only=True):
    """The local pool.

    workers:            engines that run already, with what is to be said of each; the plain list
                        of addresses (`workers`, YUZUI_WORKERS) stands beside it
    dns:                names whose every address is a worker
    heartbeats:         workers that announce themselves in Redis (`yuzui announce`) are used
    queue_max:          how many requests of each class may wait in one gateway process for a free
                        slot; 0: nobody waits here, and every worker queues for itself
    wait_interactive_s: how long a request waits at most that may not or cannot go anywhere else;
                        wait_batch_s: the same for class batch
    warm_up_s:          a worker that has only just come gets its load little by little for so long
    cores_per_worker:   with `local_workers: auto` and no GPU, one worker for so many cores
    hang_s:             a worker started by `yuzui up` that answers no probe for so long is killed
                        and started anew
    worker_options:     what is added to the command line of workers that `yuzui up` starts, such as
                        "--slots 8 --quantize int8"; `yuzui worker --help` says what there is
    """

    workers: tuple[WorkerConfig, ...] = ()
    dns: tuple[DnsConfig, ...] = ()
    heartbeats: bool = False
    queue_max: Annotated[int, Meta(ge=0, le=100_000)] = 256
    wait_interactive_s: Seconds = 60.0
    wait_batch_s: Seconds = 600.0
    warm_up_s: Annotated[float, Meta(ge=0, le=3_600, description="seconds")] = 10.0
    cores_per_worker: Annotated[int, Meta(ge=1, le=1_024)] = 8
    hang_s: Seconds = 20.0
    worker_options: str = ""

    def __post_init__(self) -> None:
        try:
            shlex.split(self.worker_options)
        except ValueError as error:
            raise Invalid("worker_options", f"is not a command line: {error}") from None
        names = [worker.name for worker in (*self.workers, *self.dns) if worker.name]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise Invalid("workers", f"the name {doubled[0]!r} is used twice")

    @property
    def remote(self) -> bool:
        """Whether workers are named or found that run already."""
        return bool(self.workers or self.dns or self.heartbeats)
