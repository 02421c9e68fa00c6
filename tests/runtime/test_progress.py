"""`durable.telemetry.progress()`: what a terminal is shown of a script's own run, and what a file gets."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable
from typing import Any, Final

import pytest
from rich.console import Console

import durable
from durable.errors import InvalidArgument
from durable.events import MapBegan
from durable.stores import memory
from durable.telemetry import progress


class Shown:
    """In place of rich's status: what it is told to show, each text once."""

    texts: Final[list[str]] = []
    open: int = 0

    def __init__(self, text: Any, *, console: Any) -> None:
        self.texts.append(text.plain)

    def start(self) -> None:
        Shown.open += 1

    def update(self, text: Any) -> None:
        if text.plain != self.texts[-1]:
            self.texts.append(text.plain)

    def stop(self) -> None:
        Shown.open -= 1


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the line, in their order."""
    monkeypatch.setattr("rich.status.Status", Shown)
    Shown.texts.clear()
    Shown.open = 0
    return Shown.texts


def terminal(**options: Any) -> Any:
    return Console(file=io.StringIO(), force_terminal=True, width=200, **options)


def execute(workflow: Any, store: Any, listener: Any, id: str = "r") -> Any:
    made = durable.run(None, workflow, id=id, store=store, on_event=listener)
    return asyncio.run(made) if asyncio.iscoroutine(made) else made


def blocking(step: Any, _: Any) -> list[int]:
    first = step("first", lambda: 1)
    return [first, *step.map("item", lambda n: n, [1, 2, 3, 4], max_concurrency=1)]


async def awaited(step: Any, _: Any) -> list[int]:
    async def same(n: int) -> int:
        return n

    first = await step("first", lambda: same(1))
    return [first, *await step.map("item", same, [1, 2, 3, 4], max_concurrency=1)]


@pytest.mark.parametrize("workflow", [blocking, awaited])
def test_a_map_has_a_bar_since_its_total_is_known(workflow: Any, shown: list[str]) -> None:
    """It fills item by item, and goes when it is full; at the end there is one line."""
    console = terminal()
    with memory() as store:
        execute(workflow, store, progress(console))
    assert shown == [
        "r: 0 steps done",
        "r: 0 steps done, first",
        "r: 1 step done",
        "r: 1 step done, item ---------- 0/4",
        "r: 1 step done, item ---------- 0/4, item[0]",
        "r: 2 steps done, item ##-------- 1/4",
        "r: 2 steps done, item ##-------- 1/4, item[1]",
        "r: 3 steps done, item #####----- 2/4",
        "r: 3 steps done, item #####----- 2/4, item[2]",
        "r: 4 steps done, item #######--- 3/4",
        "r: 4 steps done, item #######--- 3/4, item[3]",
        "r: 5 steps done",
    ]
    assert Shown.open == 0
    assert console.file.getvalue() == "r: completed, 5 steps done\n"


@pytest.mark.parametrize("colour", ["blocking", "awaited"])
def test_what_was_resumed_counts_as_done(colour: str, shown: list[str]) -> None:
    """From the beginning, in the map's bar too; what has failed and runs again counts once, when it is done."""
    fails = [True]

    def item(n: int) -> int:
        if n == 2 and fails[0]:
            raise OSError("no")
        return n

    def workflow(step: Any, _: Any) -> Any:
        step("first", lambda: 1)
        return step.map("item", item, [0, 1, 2, 3], max_concurrency=1)

    async def workflow_async(step: Any, _: Any) -> Any:
        async def called(n: int) -> int:
            return item(n)

        async def one() -> int:
            return 1

        await step("first", one)
        return await step.map("item", called, [0, 1, 2, 3], max_concurrency=1)

    chosen = workflow if colour == "blocking" else workflow_async
    console = terminal()
    with memory() as store:
        with pytest.raises(OSError):
            execute(chosen, store, progress(console))
        fails[0] = False
        shown.clear()
        shown.append("")
        execute(chosen, store, progress(console))
        execute(chosen, store, progress(console))
    assert shown[1:] == [
        "r: 3 steps done (3 before)",
        "r: 3 steps done (3 before), item #####----- 2/4",
        "r: 3 steps done (3 before), item #####----- 2/4, item[2]",
        "r: 4 steps done (3 before), item #######--- 3/4",
        "r: 4 steps done (3 before), item #######--- 3/4, item[3]",
        "r: 5 steps done (3 before)",
    ]
    assert console.file.getvalue().splitlines() == [
        "r: failed (OSError), 3 steps done, 1 failed",
        "r: completed, 5 steps done (3 before)",
        "r: had ended before",
    ]


def test_what_was_set_aside_is_not_done(shown: list[str]) -> None:
    with memory() as store:
        execute(blocking, store, None)
        durable.fork(store, "r", from_step="item[1]", new_id="again")
        shown.append("")
        execute(blocking, store, progress(terminal()), "again")
    assert shown[1] == "again: 2 steps done (2 before)"
    assert shown[-1] == "again: 5 steps done (2 before)"


def test_without_a_terminal_there_is_a_line_at_the_end_alone(shown: list[str], capsys: Any) -> None:
    """On stderr, without a colour or a control."""
    with memory() as store:
        execute(blocking, store, progress())
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "r: completed, 5 steps done\n")
    assert shown == []


@pytest.mark.parametrize(("environment", "has_color"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], has_color: bool) -> None:
    """By rich's own line, drawn on a terminal: it moves the cursor, and colours nothing."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console = terminal()
    with memory() as store:
        execute(blocking, store, progress(console))
    written = console.file.getvalue()
    assert "\x1b[?25l" in written  # the cursor is hidden: it was drawn
    assert written.endswith("r: completed, 5 steps done\n") or "r: completed, 5 steps done\n" in written
    assert ("\x1b[32m" in written) is has_color


def test_an_id_is_no_markup(shown: list[str]) -> None:
    """Nor is a key: what an id says is shown, and not obeyed."""
    console = terminal()
    with memory() as store:
        execute(lambda step, _: step("[bold]x[/]", lambda: 1), store, progress(console), "[red]r[/]")
    assert "[red]r[/]: 0 steps done, [bold]x[/]" in shown
    assert console.file.getvalue() == "[red]r[/]: completed, 1 step done\n"


def test_several_runs_share_the_line(shown: list[str]) -> None:
    """It goes with the last of them."""
    console = terminal()
    listener = progress(console)
    with memory() as store:

        def outer(step: Any, _: Any) -> None:
            step("outer", lambda: 1)
            durable.run(None, blocking, id="inner", store=store, on_event=listener)

        execute(outer, store, listener)
    assert "r: 1 step done   inner: 0 steps done, first" in shown
    assert Shown.open == 0
    assert [line.partition(":")[0] for line in console.file.getvalue().splitlines()] == ["inner", "r"]


def test_without_rich_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(InvalidArgument, match=r"rich, which is not installed: pip install 'durable-postgres\[cli\]'"):
        progress()


@pytest.mark.parametrize("workflow", [blocking, awaited])
def test_the_event_names_the_keys_of_the_items(workflow: Callable[..., Any]) -> None:
    """Once a call, before the first item, with or without records of them."""
    events: list[Any] = []
    with memory() as store:
        execute(workflow, store, events.append)
        began = [event for event in events if isinstance(event, MapBegan)]
        assert [(event.name, event.keys) for event in began] == [("item", tuple(f"item[{n}]" for n in range(4)))]
        assert events.index(began[0]) < min(n for n, one in enumerate(events) if getattr(one, "key", "") == "item[0]")
        assert "item[0]" not in repr(began[0])
