"""The three things that the engine benchmark compares, each a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from gateway.machine.stack import answers as is_up
from tests.bench.streams import Answer, burst
from tests.ports import free_port

READY_S = 300.0  # loading a checkpoint of 1 GB on a busy core


class Side(Protocol):
    """A process that answers. `streams`: its answers come with times of their tokens."""

    name: str
    streams: bool

    def ask(self, bodies: Sequence[dict[str, Any]]) -> tuple[list[Answer], float]:
        """All at once; the answers in order, and the seconds until the last one was whole."""
        ...

    def pause(self) -> None:
        """Stop the process: it keeps its memory and takes no time from the others."""
        ...

    def resume(self) -> None: ...
    def stop(self) -> None: ...


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted values lie (nearest rank, no interpolation)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Process:
    """What the sides have in common."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        """The end of its log, for an error."""
        return self._log.read_text(errors="replace")[-2000:]


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


class Streamed(_Process):
    """A server in the OpenAI chat dialect."""

    streams = True

    def __init__(
        self, name: str, process: subprocess.Popen[str], log: Path, *, url: str, model: str
    ) -> None:
        super().__init__(process, log)
        self.name = name
        self.url = url
        self._model = model

    @classmethod
    def start_ours(
        cls, path: Path, *, dtype: str, threads: int, log: Path, extra: Sequence[str] = ()
    ) -> Self:
        """Our worker."""
        command = ["backends.glm", "--model", str(path), "--dtype", dtype, "--device", "cpu"]
        command += extra
        return cls._start("ours", command, "glm-4.6v", threads, log)

    @classmethod
    def start_serve(
        cls, path: Path, *, dtype: str, threads: int, log: Path, extra: Sequence[str] = ()
    ) -> Self:
        """`transformers serve`."""
        command = ["tests.bench.transformers_serve", str(path), "--dtype", dtype]
        return cls._start("serve", command, str(path), threads, log)

    @classmethod
    def _start(cls, name: str, command: list[str], model: str, threads: int, log: Path) -> Self:
        port = free_port()
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *command, "--port", str(port)],
                env=_environment(threads), stdout=out, stderr=out, text=True,
            )  # fmt: skip
        side = cls(name, process, log, url=f"http://127.0.0.1:{port}", model=model)
        deadline = time.monotonic() + READY_S
        while not is_up(side.url + "/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                side.stop()
                raise RuntimeError(f"{name} did not start\n{side.said()}")
            time.sleep(0.1)
        return side

    def rss_mb(self) -> float:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kib = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(kib.split()[1]) / 1024

    def descriptors(self) -> int:
        """Files and sockets that the process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def ask(self, bodies: Sequence[dict[str, Any]]) -> tuple[list[Answer], float]:
        options = {"model": self._model, "stream_options": {"include_usage": True}}
        began = time.perf_counter()
        answers = asyncio.run(burst(self.url, [{**body, **options} for body in bodies]))
        return answers, time.perf_counter() - began


class Generate(_Process):
    """Plain `generate()`."""

    name = "generate"
    streams = False

    @classmethod
    def start(cls, path: Path, *, dtype: str, threads: int, log: Path) -> Self:
        """Returns when the weights are in memory."""
        with log.open("ab") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.plain_generate", str(path), "--dtype", dtype],
                env=_environment(threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=err, text=True,
            )  # fmt: skip
        side = cls(process, log)
        side._line()
        return side

    def ask(self, bodies: Sequence[dict[str, Any]]) -> tuple[list[Answer], float]:
        tokens = bodies[0]["max_tokens"]
        reply = self._said(chats=[body["messages"] for body in bodies], tokens=tokens)
        answers = [
            Answer(text=text, ttft_s=0.0, total_s=0.0, prompt_tokens=0, completion_tokens=tokens)
            for text in reply["texts"]
        ]
        return answers, reply["seconds"]

    def behind(self, body: dict[str, Any], text: str) -> list[float]:
        """How greedy a text is as an answer: see `plain_generate.follow`."""
        reply = self._said(chats=[body["messages"]], tokens=body["max_tokens"], text=text)
        return list(reply["behind"])

    def _said(self, **wanted: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"generate() has ended\n{self.said()}")
        read: dict[str, Any] = json.loads(line)
        return read
