"""The page "Command line" says what the commands take, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from durable._commands.app import COMMANDS
from harness.command_page import PAGE, page

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_made_of_the_commands() -> None:
    """After a change of a command: `python tests/harness/command_page.py`."""
    assert PAGE.read_text("utf-8") == page()


def test_every_picture_on_the_page_is_a_golden_one() -> None:
    """What is shown of `show` is what it writes, at a hundred columns."""
    shown = PAGE.read_text("utf-8").partition("$ durable show checkout-7f3a\n")[2].partition("```")[0].strip()
    golden = (ROOT / "tests" / "golden" / "commands" / "show_checkout-7f3a.txt").read_text("utf-8")
    written = golden.partition("== 100, exit 0\n")[2].partition("\n== 160")[0].replace("-- stderr\n", "").strip()
    assert shown == written


def test_every_command_that_pages_name_is_there() -> None:
    """`durable NAME` in any page: also in those that are not about it."""
    for file in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for name in re.findall(r"(?:^\$ |`)durable ([a-z]+)\b", file.read_text("utf-8"), re.MULTILINE):
            assert name in COMMANDS, (file.name, name)
