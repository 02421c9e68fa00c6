"""What the commands write, at three widths, on a terminal and elsewhere, and as JSON: as `tests/golden/commands` has it.

`python tests/operate/test_golden_commands.py` writes these files anew: read what has changed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

GOLDEN: Final = Path(__file__).resolve().parents[1] / "golden" / "commands"
if __name__ == "__main__":
    sys.path.insert(0, str(GOLDEN.parents[1]))

from harness.commands import CommandLine, fill, fill_schedules, golden_names, still_store  # noqa: E402

COMMANDS: Final = (
    ("list",),
    ("list", "status:failed", "workflow:checkout"),
    ("list", "--columns", "run,status,queue,due,priority,records,executions,owner"),
    ("list", "--count"),
    ("show", "checkout-7f3a"),
    ("show", "checkout-7f3a", "--values"),
    ("show", "checkout-7f3a", "--step", "book courier"),
    ("show", "checkout-7f3a", "--step", "charge"),
    ("show", "checkout-7f3a", "--errors", "--no-steps"),
    ("show", "checkout-7f3a", "--no-messages"),
    ("show", "order-1"),
    ("show", "order-2"),
    ("show", "order-3"),
    ("show", "order-4"),
    ("show", "order-5"),
    ("show", "ok-1"),
    ("show", "left-1"),
    ("stats",),
    ("queues",),
    ("schedules",),
    ("schedules", "pause", "nightly"),
    ("schedules", "resume", "beat"),
    ("schedules", "run", "nightly"),
    ("schedules", "backfill", "nightly", "--since", "2d"),
    ("schedules", "delete", "beat", "--yes"),
    ("schedules", "delete", "beat"),
    ("schedules", "pause", "nothing"),
    ("schedules", "backfill", "nightly"),
    ("schedules", "list", "nightly"),
)
WIDTHS: Final = (72, 100, 160)


def written(arguments: tuple[str, ...]) -> str:
    """All that a command writes, in each of the ways."""
    parts: list[str] = []
    for how in ("json", "no terminal", *WIDTHS):
        store = still_store()
        fill(store)
        if arguments[0] == "schedules":
            fill_schedules(store)
        given = [*arguments, "--json"] if how == "json" else list(arguments)
        said = CommandLine(store)(*given, width=how if isinstance(how, int) else None)
        err = re.sub(r"^at=\S+ (.*) who=\S+", r"at=… \1 who=…", said.err, flags=re.MULTILINE)
        parts.append(f"== {how}, exit {said.status}\n{said.out}{err and '-- stderr' + chr(10)}{err}")
    return "\n".join(parts)


@pytest.mark.parametrize("arguments", COMMANDS, ids=golden_names)
def test_a_command_writes_what_the_golden_file_has(arguments: tuple[str, ...]) -> None:
    """Byte by byte. What is meant to be otherwise is written anew, and read."""
    file = GOLDEN / f"{golden_names(arguments)}.txt"
    assert written(arguments) == file.read_text("utf-8")


@pytest.mark.parametrize("arguments", COMMANDS, ids=golden_names)
def test_no_line_is_wider_than_the_terminal(arguments: tuple[str, ...]) -> None:
    """But for values and tracebacks, which are not cut."""
    if "--values" in arguments or "--step" in arguments or "--errors" in arguments or "--columns" in arguments:
        return
    for width in WIDTHS:
        store = still_store()
        fill(store)
        said = CommandLine(store)(*arguments, width=width)
        assert [line for line in said.out.splitlines() if len(line) > width] == []


def test_no_value_is_written_unless_it_is_asked_for() -> None:
    """The card stands in the input, a token in a step's value: nowhere but behind `--values` and `--step`, and there redacted."""
    for arguments in COMMANDS:
        text = written(arguments)
        assert "tok_secret" not in text
        assert "4111 1111 1111 1111" not in text
        if "--values" not in arguments and "charge" not in arguments:
            assert "p-31c9" not in text
        if "--no-messages" in arguments:
            assert "no answer within" not in text


def files() -> Iterator[tuple[Path, str]]:
    for arguments in COMMANDS:
        yield GOLDEN / f"{golden_names(arguments)}.txt", written(arguments)


if __name__ == "__main__":
    for file, text in files():
        file.write_text(text, "utf-8")
