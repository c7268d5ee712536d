"""What a user can set, from four places: flag, then environment, then TOML file, then default.

Each option is one field here; its flag, its ``VQWATCH_*`` variable and its TOML key are made from the field's name.
The environment is passed in.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vqwatch.wire import default_endpoint

ENVIRONMENT_PREFIX = "VQWATCH_"


class SettingsError(ValueError):
    """An option that cannot be; the message names the key, the value and what is allowed."""


class Settings(BaseModel):
    """Every option of ``vqwatch daemon``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: list[str] = Field(
        default=[], description="ZeroMQ endpoint for emitters, ipc://PATH or tcp://ADDRESS:PORT; repeatable"
    )
    http: str = Field(default="127.0.0.1:9815", description="address and port of /metrics and the page")
    web_config: Path | None = Field(
        default=None, description="TLS and authentication of the HTTP side, in the manner of Prometheus"
    )
    rules: list[Path] = Field(default=[], description="rule file that extends the shipped pack; repeatable")
    default_rules: bool = Field(default=True, description="load the shipped rule pack")
    alertmanager: list[str] = Field(default=[], description="URL of an Alertmanager; repeatable, all are told")
    external_url: str = Field(default="", description="where people reach the page, for links in alerts")
    state: Path | None = Field(default=None, description="directory that outlives the daemon: history and state")
    snapshot_seconds: float = Field(
        default=30, gt=0, le=3600, description="how often everything is written to the state directory as a whole"
    )
    window: int = Field(default=100, ge=2, le=100_000, description="batches in the sliding window of code usage")
    max_runs: int = Field(default=64, ge=1, le=10_000, description="runs held at once; more are refused and counted")
    run_retention_seconds: float = Field(
        default=3600, gt=0, description="how long a run that ended or fell silent keeps its series"
    )
    wandb: str = Field(default="", description="write to this Weights & Biases project, or ENTITY/PROJECT")
    tensorboard: Path | None = Field(default=None, description="write TensorBoard event files below this directory")
    mlflow: str = Field(default="", description="write to this MLflow tracking server or store")
    jsonl: Path | None = Field(default=None, description="append everything to this file as JSON lines")
    sink_interval_seconds: float = Field(
        default=1, ge=0, le=3600, description="a value of a metric goes to these four once in so many seconds; 0: all"
    )
    per_code_series: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="how many series may count assignments to single codes, whole layers at a time; 0: none",
    )
    allow_stop: bool = Field(default=False, description="let rules with `action: stop` ask the training to end")
    keys: Path | None = Field(
        default=None, description="directory of CURVE keys, made by `vqwatch keys`; every emitter then needs one"
    )
    session_bytes_per_second: float = Field(
        default=64 * 1024 * 1024, gt=0, description="what one emitter may send; 8 times as much at once"
    )
    run_bytes_per_second: float = Field(default=1024 * 1024 * 1024, gt=0, description="the same for all of a run's")
    insecure_tcp: bool = Field(default=False, description="accept tcp:// beyond loopback without keys")
    log_level: str = Field(default="info", description="debug, info, warning or error")

    @property
    def sinks(self) -> dict[str, str]:
        """The sinks asked for: kind -> where it writes to."""
        targets = {
            "wandb": self.wandb,
            "tensorboard": str(self.tensorboard or ""),
            "mlflow": self.mlflow,
            "jsonl": str(self.jsonl or ""),
        }
        return {kind: target for kind, target in targets.items() if target}

    @field_validator("http")
    @classmethod
    def _check_http(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("alertmanager")
    @classmethod
    def _check_urls(cls, value: list[str]) -> list[str]:
        for url in value:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise ValueError(f"{url!r} is no http:// or https:// URL")
        return value

    @field_validator("listen")
    @classmethod
    def _check_endpoints(cls, value: list[str]) -> list[str]:
        for endpoint in value:
            if not endpoint.startswith(("ipc://", "tcp://")) or len(endpoint) <= len("ipc://"):
                raise ValueError(f"{endpoint!r} is neither ipc://PATH nor tcp://ADDRESS:PORT")
        return value

    @field_validator("log_level")
    @classmethod
    def _check_level(cls, value: str) -> str:
        if value not in ("debug", "info", "warning", "error"):
            raise ValueError(f"{value!r} is none of debug, info, warning, error")
        return value


def split_address(value: str) -> tuple[str, int]:
    """Split ``ADDRESS:PORT``; the address may be ``[IPv6]``.

    >>> split_address("[::1]:9815")
    ('::1', 9815)
    """
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{value!r} is not ADDRESS:PORT with a port from 0 to 65535")
    return host.strip("[]"), int(port)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser one flag for each option, and ``--config FILE``."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with these options as keys")
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        help_text = f"{field.description} [{_shown(name, field.default)}]"
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=field.description)
        elif _is_list(field.annotation):
            parser.add_argument(flag, action="append", metavar=name.upper().rstrip("S"), help=help_text)
        else:
            parser.add_argument(flag, metavar=name.upper(), help=help_text)


def _shown(name: str, default: Any) -> str:
    if name == "listen":
        return "a socket that only you can enter"
    return "none" if default in (None, [], "") else str(default)


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list


def load(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Return the settings that flags, environment and file add up to. Raises :class:`SettingsError`."""
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    path = arguments.config or (Path(environment["VQWATCH_CONFIG"]) if environment.get("VQWATCH_CONFIG") else None)
    if path is not None:
        for key, value in _read_toml(path).items():
            values[key], origin[key] = value, f"{path}, key {key}"
    for name, field in Settings.model_fields.items():
        variable = ENVIRONMENT_PREFIX + name.upper()
        if environment.get(variable):
            text = environment[variable]
            values[name] = [item.strip() for item in text.split(",")] if _is_list(field.annotation) else text
            origin[name] = f"environment variable {variable}"
        if getattr(arguments, name, None) is not None:
            values[name], origin[name] = getattr(arguments, name), f"--{name.replace('_', '-')}"
    values.setdefault("listen", [default_endpoint(environment)])
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(item, origin) for item in error.errors())) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    unknown = sorted(set(values) - set(Settings.model_fields))
    if unknown:
        raise SettingsError(
            f"{path}: unknown key {', '.join(map(repr, unknown))}; allowed: {', '.join(Settings.model_fields)}"
        )
    return values


def _explain(item: Any, origin: Mapping[str, str]) -> str:
    key = str(item["loc"][0])
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{origin.get(key, key)}: {message} (got {item['input']!r})"
