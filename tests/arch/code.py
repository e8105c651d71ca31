"""The packages as syntax trees, and the questions that the rules ask of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = ("policies", "backends", "gateway")


class Source(NamedTuple):
    """One file: its path from the root, with slashes, and its tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        name = self.path.removesuffix(".py").replace("/", ".")
        return name.removesuffix(".__init__")


class Import(NamedTuple):
    """`module` as a full dotted name; `names` empty for a plain import."""

    module: str
    names: tuple[str, ...]
    line: int
    typing_only: bool  # under `if TYPE_CHECKING:`
    inner: bool  # inside a function

    def targets(self) -> list[str]:
        """Every module that may be meant: `from a import b` can name the module a.b."""
        return [self.module, *(f"{self.module}.{name}" for name in self.names)]


def source(path: str, text: str) -> Source:
    return Source(path, text, ast.parse(text, path))


def sources(*packages: str) -> list[Source]:
    """All files of the given packages (none: of all three)."""
    return [
        source(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))
        for package in packages or PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
    ]


def imports(source: Source) -> list[Import]:
    """Every import statement, wherever it stands."""
    return list(_imports(source.tree, source, typing_only=False, inner=False))


def _imports(node: ast.AST, of: Source, *, typing_only: bool, inner: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, (), child.lineno, typing_only, inner)
        elif isinstance(child, ast.ImportFrom):
            module = child.module or ""
            if child.level:
                parts = of.path.removesuffix(".py").split("/")[: -child.level]
                module = ".".join([*parts, *([module] if module else [])])
            names = tuple(alias.name for alias in child.names)
            yield Import(module, names, child.lineno, typing_only, inner)
        else:
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(
                child, of, typing_only=typing_only or typing, inner=inner or function
            )


def within(module: str, *packages: str) -> bool:
    """Whether `module` is one of `packages` or lies inside one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def calls(source: Source) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called, as it is written."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
