"""`python -m durable`: the command line."""

from __future__ import annotations

import argparse

from durable._commands import worker


def main() -> None:
    """Read the command line, and do what it says. A mistake in it ends with status 2."""
    parser = argparse.ArgumentParser(prog="python -m durable", description="Durable workflows in your own PostgreSQL.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    worker.add_to(commands)
    given = parser.parse_args()
    given.perform(given)


if __name__ == "__main__":
    main()
