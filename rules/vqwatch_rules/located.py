"""YAML that remembers where each value stands, and can be merged without forgetting it.

Knows nothing of rules. A value is read by YAML's safe schema; anchors work, tags beyond the safe ones do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from vqwatch_rules.errors import Problem, RuleError, Where

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 20

_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Content: TypeAlias = "dict[str, Located] | list[Located] | str | int | float | bool | None"


@dataclass(frozen=True, slots=True)
class Located:
    """A YAML value with its place. Mappings hold `Located` by key, sequences `Located` items, scalars themselves."""

    content: Content
    where: Where

    def plain(self) -> Any:
        """Return the value as ordinary dicts, lists and scalars."""
        if isinstance(self.content, dict):
            return {key: item.plain() for key, item in self.content.items()}
        if isinstance(self.content, list):
            return [item.plain() for item in self.content]
        return self.content

    def place(self, path: Sequence[str | int]) -> Where:
        """Return where ``path`` stands, or its nearest ancestor that is there; unknown parts are skipped."""
        here = self
        for part in path:
            content = here.content
            if isinstance(content, dict) and str(part) in content:
                here = content[str(part)]
            elif isinstance(content, list) and isinstance(part, int) and 0 <= part < len(content):
                here = content[part]
        return here.where

    def get(self, key: str) -> Located | None:
        """Return the value under ``key`` of a mapping, None when there is none (or this is no mapping)."""
        return self.content.get(key) if isinstance(self.content, dict) else None


def merged(base: Located, change: Located) -> Located:
    """Return ``base`` with ``change`` laid over it: mappings merge key by key, everything else is replaced.

    A key whose change is null or false goes away. Places come from whichever file the value comes from.
    """
    if not (isinstance(base.content, dict) and isinstance(change.content, dict)):
        return change
    out = dict(base.content)
    for key, item in change.content.items():
        if item.content is None or item.content is False:
            out.pop(key, None)
        elif key in out:
            out[key] = merged(out[key], item)
        else:
            out[key] = item
    return Located(out, base.where)


def read(path: Path) -> Located:
    """Read one YAML file.

    Raises:
        RuleError: it cannot be read, is not YAML, is larger than 1 MiB, repeats a key or nests too deeply.
    """
    name = str(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RuleError([Problem(Where(name), "", f"cannot be read: {error.strerror or error}")]) from error
    if len(text) > MAX_FILE_BYTES:
        raise RuleError([Problem(Where(name), "", f"larger than {MAX_FILE_BYTES} bytes")])
    return parse(text, name)


def parse(text: bytes | str, name: str) -> Located:
    """Read YAML text; ``name`` stands for it in messages. Raises as `read` does."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Located({}, Where(name, 1))
        return _convert(node, loader, name, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Where(name, mark.line + 1 if mark else 0)
        raise RuleError([Problem(where, "", f"not YAML: {error.problem or error.context}")]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RuleError([Problem(Where(name), "", f"not YAML: {error}")]) from error
    finally:
        loader.dispose()


def _convert(node: yaml.Node, loader: Any, name: str, depth: int) -> Located:
    where = Where(name, node.start_mark.line + 1)
    if depth > MAX_DEPTH:
        raise RuleError([Problem(where, "", f"nested more than {MAX_DEPTH} deep")])
    if isinstance(node, yaml.CollectionNode) and node.tag not in _TAGS:
        raise RuleError([Problem(where, "", f"the tag {node.tag} is not allowed")])
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Located] = {}
        for key_node, value_node in node.value:
            key = _key(key_node, name)
            if key in out:
                line = Where(name, key_node.start_mark.line + 1)
                raise RuleError([Problem(line, key, f"written twice; the first is in line {out[key].where.line}")])
            value = _convert(value_node, loader, name, depth + 1)
            # A mapping's or list's place is its key's line: that is what one looks for in the file.
            out[key] = Located(value.content, Where(name, key_node.start_mark.line + 1))
        return Located(out, where)
    if isinstance(node, yaml.SequenceNode):
        return Located([_convert(item, loader, name, depth + 1) for item in node.value], where)
    value = loader.construct_object(node)
    return Located(value if isinstance(value, str | int | float | bool | None) else str(node.value), where)


def _key(node: yaml.Node, name: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise RuleError([Problem(Where(name, node.start_mark.line + 1), "", "a key has to be a plain word")])
    return str(node.value)
