"""YAML 1.2 with positions: every value can be traced to its line and column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sweeper.core.errors import InputError, Problem

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 50
_BRACKET = re.compile(r"[\[\]{}]")


@dataclass(frozen=True)
class Document:
    """A parsed file: plain Python data and the tree it came from."""

    name: str
    data: Any
    root: Node | None

    def place(self, path: Sequence[str | int]) -> str:
        """Return ``file:line:column dotted.path`` of a value, or of the nearest thing above it that exists."""
        node = self.root
        mark = node.start_mark if node is not None else None
        for part in path:
            step = _child(node, part)
            if step is None:
                break
            mark, node = step
        dotted = ".".join(str(part) for part in path)
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        return f"{self.name}:{line}:{column} {dotted}".rstrip()


def read_yaml(path: str | Path) -> Document:
    """Read one YAML file; tags and objects are refused, keys must be unique.

    Raises
    ------
    InputError
        With file, line and column.
    """
    name = str(path)
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(Problem(name, "the file must exist", "nothing there", "check the path")) from None
    except OSError as error:
        raise InputError(Problem(name, "the file must be readable", error.strerror or "", "check the path")) from None
    if len(content) > MAX_BYTES:
        raise InputError(Problem(name, "must be at most 1 MiB", f"{len(content)} bytes", "is this the right file?"))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(Problem(name, "must be UTF-8 text", str(error), "save it as UTF-8")) from None
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> Document:
    """Parse YAML text; see `read_yaml`."""
    _refuse_depth(text, name)
    try:
        root = YAML(typ="rt", pure=True).compose(text)
        _refuse_bombs(root, name)
        data = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        reason = " ".join((error.problem or str(error)).split())
        raise InputError(Problem(at, "must be valid YAML", reason, "mend the line")) from None
    except (YAMLError, ValueError, TypeError, RecursionError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(Problem(name, "must be valid YAML", reason or type(error).__name__, "mend the file")) from None
    return Document(name, data, root)


def _refuse_depth(text: str, name: str) -> None:
    """Refuse text that nests too deeply, before it is parsed: two kilobytes of ``[a, `` keep the parser for minutes.

    Brackets in quotes and comments count too; no study file has so many that are never closed.
    """
    brackets, indents = 0, [-1]
    for number, line in enumerate(text.splitlines(), 1):
        indent = len(line) - len(line.lstrip())
        if indent < len(line):
            while indents[-1] >= indent:
                indents.pop()
            indents.append(indent)
        for bracket in _BRACKET.findall(line):
            brackets = max(0, brackets + (1 if bracket in "[{" else -1))
            if brackets > MAX_DEPTH:
                break
        entries = line.split()
        inline = next((at for at, word in enumerate(entries) if word not in ("-", "?")), len(entries))
        if brackets + len(indents) + inline > MAX_DEPTH:
            raise InputError(Problem(f"{name}:{number}", f"must nest at most {MAX_DEPTH} levels", "more", "unfold it"))


def _refuse_bombs(root: Node | None, name: str) -> None:
    """Count nodes as if every alias were written out: a small file may unfold to billions."""
    count = 0
    stack: list[tuple[Node | None, int]] = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise InputError(
                Problem(name, "must stay small when its aliases are written out", "too large", "unfold it")
            )
        if isinstance(node, SequenceNode):
            stack.extend((child, depth + 1) for child in node.value)
        elif isinstance(node, MappingNode):
            stack.extend((child, depth + 1) for pair in node.value for child in pair)


def _child(node: Node | None, part: str | int) -> tuple[Any, Node] | None:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if isinstance(key, ScalarNode) and key.value == str(part):
                return key.start_mark, value
    elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark, node.value[part]
    return None
