"""The command `durable`, which is `python -m durable` too."""

from __future__ import annotations

import sys
from typing import NoReturn

_MISTAKE = 2
_NEEDS_CLICK = (
    "durable: the command line needs click, which is not installed: pip install 'durable-postgres[cli]'. "
    "(durable worker works without it.)\n"
)


def main() -> NoReturn:
    """Do what the command line says, and exit. `worker` needs nothing that the library does not need."""
    if sys.argv[1:2] == ["worker"]:
        from durable._commands.worker import main as work  # noqa: PLC0415 -- the other commands need none of it

        sys.exit(work(sys.argv[2:]))
    try:
        import click  # noqa: F401, PLC0415  # pyright: ignore[reportUnusedImport] -- whether it is there
    except ModuleNotFoundError:
        sys.stderr.write(_NEEDS_CLICK)
        sys.exit(_MISTAKE)
    from durable._commands.app import run  # noqa: PLC0415

    sys.exit(run())


if __name__ == "__main__":
    main()
