"""`[tool.durable]` of the nearest `pyproject.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final, cast

from durable.errors import InvalidArgument

_KEYS: Final = ("url", "url-env", "embedded", "table", "schema", "prefix", "lock", "worker", "redact")


def read_settings() -> tuple[dict[str, Any], Path | None]:
    """`[tool.durable]` of the nearest `pyproject.toml` upward, and that file."""
    here = Path.cwd()
    for directory in (here, *here.parents):
        file = directory / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            told: Any = tomllib.loads(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
            raise InvalidArgument(f"{file} cannot be read: {problem}") from None
        settings = told.get("tool", {}).get("durable")
        if settings is None:
            continue
        if not isinstance(settings, dict):
            raise InvalidArgument(f"[tool.durable] in {file} is no table")
        found = cast("dict[str, Any]", settings)
        if unknown := sorted(set(found) - set(_KEYS)):
            raise InvalidArgument(f"[tool.durable] in {file} has no key {unknown[0]!r}: it knows {', '.join(_KEYS)}")
        return found, file
    return {}, None


def configured_worker() -> str | None:
    """`MODULE:WORKER`, as the settings say it; None where they say none. Raises `InvalidArgument`."""
    settings, file = read_settings()
    target = settings.get("worker")
    if target is not None and not isinstance(target, str):
        raise InvalidArgument(f"worker in [tool.durable] in {file} must be a text, like shop.flows:worker")
    return target
