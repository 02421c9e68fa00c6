"""The reference on the page "Command line": made of what click knows of the commands.

    python tests/harness/command_page.py

writes it anew, between the two marks of `docs/command-line.md`; `tests/operate/test_command_page.py` says when that is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from durable._commands.app import COMMANDS, LazyGroup, durable_command
from durable._commands.shared import STATUSES, OurCommand
from durable._commands.worker import make_parser

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"
BEGIN: Final = "<!-- made by tests/harness/command_page.py -->"
END: Final = "<!-- end -->"


def page() -> str:
    """The page as it is to be."""
    text = PAGE.read_text("utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n\n{chr(10).join(_reference())}\n{END}{after}"


def _reference() -> Iterator[str]:
    assert isinstance(durable_command, LazyGroup)
    root = click.Context(durable_command, info_name="durable")
    yield "## Commands\n"
    yield "| command | what it does |\n| --- | --- |"
    for name, (_, said) in COMMANDS.items():
        yield f"| [`{name}`](#durable-{name}) | {said} |"
    yield "\n## Global options\n"
    yield "They may stand before the command or after it.\n"
    yield from _options(durable_command, root)
    yield "## Exit status\n"
    yield "| status | meaning |\n| --- | --- |"
    for status, said in STATUSES.items():
        yield f"| {status} | {said} |"
    for name in COMMANDS:
        yield f"\n## durable {name}\n"
        if name == "worker":
            yield f"```text\n{make_parser().format_help().strip()}\n```"
            continue
        command = durable_command.get_command(root, name)
        assert isinstance(command, OurCommand)
        context = click.Context(command, info_name=name, parent=root)
        yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
        yield (
            "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n")).replace("*", r"\*")
            + "\n"
        )
        yield from _options(command, context)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    shared = command.shared if isinstance(command, OurCommand) else []
    own = [one for one in command.get_params(context) if isinstance(one, click.Option) and one not in shared]
    records = [
        record for one in own if "--help" not in one.opts and (record := one.get_help_record(context)) is not None
    ]
    if records:
        yield "| option | meaning |\n| --- | --- |"
        for names, said in records:
            yield f"| `{names}` | {said.replace('|', chr(92) + '|')} |"
        yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
