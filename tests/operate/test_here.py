"""`durable start --here`, `durable worker` by its settings, and what the shell completes."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from click.shell_completion import ShellComplete

import durable
from durable._commands import completing
from durable._commands.app import durable_command
from durable._commands.settings import configured_worker
from durable.errors import InvalidArgument
from durable.stores import Filter
from harness.commands import CommandLine
from harness.programs import run_program
from harness.support import Database

DURABLE: Final = [sys.executable, "-m", "durable"]

FLOWS: Final = """
    import asyncio, os
    import durable
    from durable.stores import memory

    store = memory()
    made = []

    @durable.workflow(name="greet")
    def greet(step, deps, name):
        return step("greet", lambda: f"{deps['word']} {name}")

    @durable.workflow(name="greet", version=2)
    def greet_twice(step, deps, name):
        return [step("greet", lambda: f"{deps['word']} {name}"), step("again", lambda: durable.current().id)]

    @durable.workflow(name="later")
    async def later(step, deps):
        await step.sleep("a while", 0.01)
        return await step("done", lambda: asyncio.sleep(0, result=1e16))

    @durable.workflow(name="breaks")
    def breaks(step, deps):
        step("break", lambda: 1 / 0)

    @durable.workflow(name="stops")
    def stops(step, deps):
        step("one", lambda: 1)
        raise KeyboardInterrupt

    def deps():
        made.append(1)
        return {"word": "Good morning,"}

    worker = durable.Worker(store, workflows=[greet, greet_twice, later, breaks, stops], deps_factory=deps)
"""


@pytest.fixture
def flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A directory with a module that has a worker, and settings that name it."""
    (tmp_path / "here_flows.py").write_text(textwrap.dedent(FLOWS))
    (tmp_path / "pyproject.toml").write_text('[tool.durable]\nworker = "here_flows:worker"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    here_flows: Any = importlib.import_module("here_flows")

    yield here_flows
    here_flows.store.close()
    del sys.modules["here_flows"]


@pytest.fixture
def line() -> CommandLine:
    return CommandLine(None)  # no other store is asked


def test_a_run_is_executed_here_until_it_ends(flows: Any, line: CommandLine) -> None:
    """Its id is said, and its result is printed as it is recorded."""
    done = line("start", "greet@1", "--here", "--id", "g", "--input", '"Ada"', "--meta", "tenant=t7", width=100)
    assert (done.status, done.out) == (0, '"Good morning, Ada"\n')
    assert "g" in done.err
    (run,) = flows.store.runs()
    assert (run.id, run.workflow, run.version, run.status) == ("g", "greet", 1, "completed")
    assert flows.store.header("g").metadata["tenant"] == "t7"
    assert line("start", "later", "--here", "--worker", "here_flows:worker").out == "1e16\n"
    assert flows.made == [1]  # once a process


def test_without_a_version_it_is_the_newest(flows: Any, line: CommandLine) -> None:
    said = line("start", "greet", "--here", "--id", "two", "--input", '"Ada"')
    assert said.out == '["Good morning, Ada","two"]\n'


def test_an_id_that_is_there_is_gone_on_with_or_refused(flows: Any, line: CommandLine) -> None:
    """As `durable.run` has it: the stored result, or what does not fit."""
    for _ in range(2):
        assert line("start", "greet@1", "--here", "--id", "g", "--input", '"Ada"').out == '"Good morning, Ada"\n'
    other = line("start", "greet@1", "--here", "--id", "g", "--input", '"Bob"')
    assert (other.status, other.out) == (4, "")
    assert "'g'" in other.err


def test_a_run_that_fails_is_bad_news(flows: Any, line: CommandLine) -> None:
    ended = line("start", "breaks", "--here", "--id", "b")
    assert (ended.status, ended.out) == (1, "")
    assert "run 'b' has failed (ZeroDivisionError in break)" in ended.err


def test_a_run_that_is_left_is_a_workers_to_go_on_with(flows: Any, line: CommandLine) -> None:
    """Ctrl-C, or a process that dies: it is due for a worker that has the workflow."""
    assert line("start", "stops", "--here", "--id", "s").status == 130
    (run,) = flows.store.runs(Filter(ids=("s",)))
    assert run.status == "interrupted"
    assert run.due_at is not None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("nothing", "--here"), "has no workflow 'nothing': it has breaks@1, greet@1, greet@2, later@1, stops@1"),
        (("greet@7", "--here"), "has no workflow 'greet@7'"),
        (("greet@" + "9" * 5000, "--here"), "has no workflow"),
        (("greet", "--here", "--delay", "3s"), "--delay does not go with --here"),
        (("greet", "--here", "--url", "postgresql:///x"), "--url does not go with --here"),
        (("greet", "--here", "--wait"), "--wait does not go with --here"),
        (("greet", "--here", "--worker", "here_flows"), "names no worker"),
        (("greet", "--here", "--worker", "here_flows:nothing"), "it has worker"),
        (("greet", "--worker", "here_flows:worker"), "--worker is for --here"),
        (("greet", "--here", "--input", "{"), "the input is no JSON"),
    ],
)
def test_what_cannot_be_is_said(flows: Any, line: CommandLine, more: tuple[str, ...], said: str) -> None:
    ended = line("start", *more)
    assert ended.status == 2
    assert said in ended.err
    assert flows.store.runs() == []


def test_without_a_worker_it_says_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: CommandLine
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.durable]\n")
    monkeypatch.chdir(tmp_path)
    assert "--here needs a worker: --worker shop.flows:worker, or [tool.durable]" in line("start", "x", "--here").err
    ended = line("worker")
    assert ended.status == 2
    assert "which worker? Name one, like shop.flows:worker, or write [tool.durable]" in ended.err
    (tmp_path / "pyproject.toml").write_text("[tool.durable]\nworker = 7\n")
    with pytest.raises(InvalidArgument, match="must be a text"):
        configured_worker()
    (tmp_path / "pyproject.toml").write_text('[tool.durable]\nworker = "no_such_module:worker"\n')
    assert "there is no module 'no_such_module'" in line("worker").err


def completed(words: str, cwd: Path, **environment: str) -> Any:
    """What bash is told of a line that ends in what is being typed."""
    given = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_DURABLE_COMPLETE": "bash_complete"}
    left_out = ("DATABASE_URL", "DURABLE_URL", "PGHOST", "PGSERVICE")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return run_program([*DURABLE], cwd=cwd, env=kept | given | environment)


def ids(said: Any) -> list[str]:
    return [text.partition(",")[2] for text in said.stdout.splitlines()]


def test_ids_of_runs_are_completed(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest first, fifty of them at most; and none that stands on the line."""
    monkeypatch.setattr(completing, "_PATIENCE", 60.0)  # this machine may be busy
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    monkeypatch.setenv("HERE", database.url)
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "DURABLE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pyproject.toml").write_text(f'[tool.durable]\nurl-env = "HERE"\nschema = "{database.schema}"\n')
    with database.store() as store:
        for number in range(60):
            durable.run(None, lambda step, _: None, id=f"order-{number}", store=store)
        durable.run(None, lambda step, _: None, id="mail:1", store=store)

    def ids_of(*words: str) -> list[str]:
        *before, last = words
        with warnings.catch_warnings():
            shell = ShellComplete(durable_command, {}, "durable", "_X")
            return [one.value for one in shell.get_completions(before, last)]

    newest = [f"order-{number}" for number in range(59, 9, -1)]
    assert ids_of("show", "mai") == ["mail:1"]
    assert ids_of("cancel", "order-") == ids_of("list", "--after", "order-") == newest
    assert ids_of("cancel", "order-59", "order-5") == [
        "order-58",
        *(f"order-5{n}" for n in range(7, -1, -1)),
        "order-5",
    ]
    assert ids_of("--schema", "nothing_here", "show", "mai") == []


@pytest.mark.parametrize("trouble", ["nothing listens", "silence", "no such table", "no settings", "nonsense"])
def test_where_the_database_does_not_say_them_nothing_is_completed(
    trouble: str, tmp_path: Path, database_url: str
) -> None:
    """Not a word on either stream, and the process ends: a server that never answers holds nothing up."""
    settings = {
        "no such table": 'url-env = "HERE"\nschema = "nothing_here"',
        "no settings": "",
        "nonsense": 'bogus = "x"',
    }
    (tmp_path / "pyproject.toml").write_text("[tool.durable]\n" + settings.get(trouble, 'url-env = "HERE"'))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if trouble == "nothing listens":
            silent.close()
        url = database_url if trouble == "no such table" else f"postgresql://127.0.0.1:{port}/x"
        said = completed("durable show x", tmp_path, HERE=url)
    assert (said.stdout.strip(), said.stderr, said.returncode) == ("", "", 0)


def test_commands_and_options_are_completed_without_a_database_driver(tmp_path: Path) -> None:
    assert "retry" in ids(completed("durable ret", tmp_path))
