"""Rule files become a `RuleSet`: the shipped pack, what the user adds to it, and what differs for single runs.

A file::

    extends: default            # or: nothing
    rules: [...]                # new rules
    override:                   # by alert name; `off` switches a rule off
      VqUtilizationFull: off
      VqLayerUtilizationLow: {severities: {warning: {threshold: 0.3}}}
    runs:                       # for runs whose name matches a shell pattern
      - match: "ablation-*"
        override: {VqSnrLow: off}
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from vqwatch_rules.checks import findings
from vqwatch_rules.conditions import KINDS, Strict
from vqwatch_rules.errors import Problem, RuleError, unknown
from vqwatch_rules.located import Located, merged, read
from vqwatch_rules.model import SEVERITIES, Annotations, Evidence, Level, Rule, conditions
from vqwatch_rules.patterns import literal

DEFAULT_RUNBOOK_BASE: Final = "/runbooks/"


def default_pack() -> Path:
    """Return where the shipped rules are."""
    return Path(__file__).parent / "packs" / "default.yaml"


def runbooks() -> Path:
    """Return the directory of the shipped runbooks, one ``<AlertName>.md`` each."""
    return Path(__file__).parent / "runbooks"


class _RunEntry(Strict):
    match: str = Field(min_length=1)
    override: dict[str, Any] = Field(default_factory=dict)


class _File(Strict):
    version: Literal[1] = 1
    extends: Literal["default", "nothing"] = "default"
    runbook_base: str | None = None
    rules: list[dict[str, Any]] = Field(default_factory=list)
    override: dict[str, Any] = Field(default_factory=dict)
    runs: list[_RunEntry] = Field(default_factory=list)


@dataclass(frozen=True)
class RuleSet:
    """Validated rules. ``metrics`` is the vocabulary they were checked against: metric -> label names without run."""

    rules: tuple[Rule, ...]
    metrics: Mapping[str, tuple[str, ...]]
    runbook_base: str = DEFAULT_RUNBOOK_BASE
    _trees: tuple[tuple[str, Located], ...] = ()
    _runs: tuple[tuple[str, Located], ...] = ()

    def for_run(self, run: str) -> tuple[Rule, ...]:
        """Return the rules as they are for one run.

        Raises:
            RuleError: two patterns match this run and their changes do not go together.
        """
        changes = tuple(index for index, (pattern, _) in enumerate(self._runs) if fnmatchcase(run, pattern))
        return _for_changes(self, changes) if changes else self.rules

    def __hash__(self) -> int:
        return id(self)

    def runbook_url(self, rule: Rule) -> str:
        """Return the rule's own URL, or the runbook page under the configured base."""
        own = rule.annotations.runbook_url
        return own if own is not None else self.runbook_base + rule.alert


@functools.lru_cache(maxsize=256)
def _for_changes(ruleset: RuleSet, changes: tuple[int, ...]) -> tuple[Rule, ...]:
    trees = dict(ruleset._trees)
    for index in changes:
        _override(trees, ruleset._runs[index][1])
    return _rules(trees, ruleset.metrics)


def load(paths: Sequence[Path], metrics: Mapping[str, Sequence[str]], *, runbook_base: str | None = None) -> RuleSet:
    """Read rule files on top of the shipped pack (unless one says ``extends: nothing``).

    Args:
        paths: files, or directories of ``*.yaml`` and ``*.yml`` files; later ones override earlier ones.
        metrics: every metric's name without ``vqwatch_`` -> its label names without ``run``.
        runbook_base: what ``runbook_url`` starts with; default: the files', else the daemon's own pages.

    Raises:
        RuleError: with every problem found, each with file, line and key.
    """
    problems: list[Problem] = []
    files: list[tuple[_File, Located]] = []
    for path in _expand(paths):
        try:
            tree = read(path)
            files.append((_file(tree), tree))
        except RuleError as error:
            problems += error.problems
    if not any(file.extends == "nothing" for file, _ in files):
        tree = read(default_pack())
        files.insert(0, (_file(tree), tree))
    known = {name: tuple(labels) for name, labels in metrics.items()}

    trees: dict[str, Located] = {}
    for _, tree in files:
        problems += _collect(trees, tree)
    for _, tree in files:
        if (change := tree.get("override")) is not None:
            problems += _override(trees, change)
    rules: tuple[Rule, ...] = ()
    try:
        rules = _rules(trees, known)
    except RuleError as error:
        problems += error.problems

    runs: list[tuple[str, Located]] = []
    for file, tree in files:
        for index, entry in enumerate(file.runs):
            change = tree.get("runs").content[index].get("override")  # type: ignore[union-attr, index]
            if change is None:
                continue
            runs.append((entry.match, change))
            own = dict(trees)
            mistakes = _override(own, change)
            if not mistakes and not problems:
                try:
                    _rules(own, known)
                except RuleError as error:
                    mistakes = list(error.problems)
            problems += mistakes
    if problems:
        raise RuleError(list(dict.fromkeys(problems)))
    bases = [base for base in (runbook_base, *(file.runbook_base for file, _ in reversed(files))) if base is not None]
    return RuleSet(rules, known, bases[0] if bases else DEFAULT_RUNBOOK_BASE, tuple(trees.items()), tuple(runs))


def unknown_layers(rules: Sequence[Rule], layers: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence for each layer that a rule names and the run does not have."""
    return tuple(
        dict.fromkeys(
            f"{rule.alert}: {unknown('layer', name, layers)}"
            for rule in rules
            for part in conditions(rule.when)
            for name in part.where.get("layer", ())
            if literal(name) and name not in layers
        )
    )


def _expand(paths: Sequence[Path]) -> list[Path]:
    out: list[Path] = []
    for path in paths:
        if path.is_dir():
            out += sorted(entry for entry in path.iterdir() if entry.suffix in {".yaml", ".yml"})
        else:
            out.append(path)
    return out


def _file(tree: Located) -> _File:
    if not isinstance(tree.content, dict):
        raise RuleError([Problem(tree.where, "", "a rule file is a mapping with 'rules', 'override' or 'runs'")])
    try:
        return _File.model_validate(tree.plain())
    except ValidationError as error:
        raise RuleError(_problems(error, tree, "")) from error


def _collect(trees: dict[str, Located], tree: Located) -> list[Problem]:
    problems = []
    listed = tree.get("rules")
    for entry in listed.content if listed is not None and isinstance(listed.content, list) else ():
        name = entry.get("alert")
        if name is None:
            problems.append(Problem(entry.where, "alert", "a rule needs a name: alert: VqSomething"))
        elif str(name.content) in trees:
            first = trees[str(name.content)].where
            text = f"{name.content!r} is already defined at {first}; use 'override' to change it"
            problems.append(Problem(name.where, "alert", text))
        else:
            trees[str(name.content)] = entry
    return problems


def _override(trees: dict[str, Located], change: Located) -> list[Problem]:
    problems = []
    for name, item in change.content.items() if isinstance(change.content, dict) else ():
        if name not in trees:
            problems.append(Problem(item.where, f"override.{name}", unknown("rule", name, trees)))
        elif item.content is False or item.content is None or item.content == "off":
            del trees[name]
        elif not isinstance(item.content, dict):
            problems.append(Problem(item.where, f"override.{name}", "is either 'off' or a mapping of what to change"))
        elif "alert" in item.content:
            problems.append(Problem(item.where, f"override.{name}.alert", "a rule cannot be renamed"))
        else:
            trees[name] = merged(trees[name], item)
    return problems


def _rules(trees: Mapping[str, Located], metrics: Mapping[str, tuple[str, ...]]) -> tuple[Rule, ...]:
    problems: list[Problem] = []
    rules: list[Rule] = []
    for name, tree in trees.items():
        try:
            rule = Rule.model_validate(tree.plain())
        except ValidationError as error:
            problems += _problems(error, tree, name)
            continue
        found = findings(rule, metrics)
        problems += [Problem(tree.place(path), _key(name, path), text) for path, text in found]
        rules.append(rule)
    if problems:
        raise RuleError(problems)
    return tuple(rules)


def _problems(error: ValidationError, tree: Located, name: str) -> list[Problem]:
    out = []
    for item in error.errors(include_url=False, include_context=True):
        path = item["loc"]
        message = str(item["msg"]).removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = unknown("key", str(path[-1]), _allowed(path, name))
        elif item["type"] == "union_tag_invalid":
            message = unknown("condition", str(item["ctx"]["tag"]), KINDS)
        elif item["type"] == "union_tag_not_found":
            message = f"a condition says what it compares with 'is', one of: {', '.join(KINDS)}"
        elif item["type"] == "missing":
            message = f"{path[-1]!r} is missing"
        elif item["type"] == "literal_error" and len(path) > 1 and path[-1] == "[key]":
            message = unknown("severity", str(item["input"]), SEVERITIES)
        elif item["type"] != "value_error":
            message = f"{message}, not {_shown(item['input'])}"
        keys = [part for index, part in enumerate(path) if not _is_tag(path, index)]
        out.append(Problem(tree.place(keys), _key(name, keys), message))
    return out


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_tag(path: Sequence[str | int], index: int) -> bool:
    """Tell a discriminator's tag, which pydantic puts into the path, from a key of the file."""
    if path[index] == "[key]":
        return True
    return path[index] in KINDS and index > 0 and (path[index - 1] == "when" or isinstance(path[index - 1], int))


def _allowed(path: Sequence[str | int], name: str) -> list[str]:
    model: Any = Rule if name else _File
    for part in path[:-1]:
        if part in KINDS:
            model = KINDS[str(part)]
        elif part == "severities":
            model = Level
        elif part == "evidence":
            model = Evidence
        elif part == "annotations":
            model = Annotations
        elif part == "runs":
            model = _RunEntry
    return [field.alias or key for key, field in model.model_fields.items()]


def _key(name: str, path: Sequence[str | int]) -> str:
    parts = [name] if name else []
    return ".".join([*parts, *(str(part) for part in path)])
