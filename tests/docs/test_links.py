"""Links within the pages lead somewhere: to a file that is there, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = [
    *sorted(ROOT.glob("*.md")),
    *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts),
    DOCS / "llms.txt",
]


def prose(page: Path) -> str:
    """Without what stands between fences, and between backticks."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """The names by which the headings of a page are linked to, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,4} (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_link_leads_to_a_page_and_to_a_heading_in_it(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if page.suffix == ".txt":
            file = file.with_suffix(".md")
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target


def test_each_page_is_reached_from_the_first_one() -> None:
    """By links or by the table of contents, and `llms.txt` names what is read most."""
    first = (DOCS / "index.md").read_text("utf-8")
    known = {DOCS / "index.md"}
    for name in re.findall(r"^([a-z][\w/-]*)$", first, flags=re.MULTILINE):
        known.add(DOCS / f"{name}.md")
    waiting = list(known)
    while waiting:
        page = waiting.pop()
        for target in re.findall(r"\]\(([^)#\s:]+\.md)", prose(page)) if page.exists() else ():
            if (file := (page.parent / target).resolve()) not in known:
                known.add(file)
                waiting.append(file)
    assert [page for page in PAGES if page.is_relative_to(DOCS) and page.suffix == ".md" and page not in known] == []
