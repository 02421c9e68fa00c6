"""Each exit status of the command line, by a command that causes it; and what is said then."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import durable
from durable._commands import app
from durable._commands.shared import STATUSES
from harness.commands import NOW, CommandLine, fill, moment, still_store
from harness.programs import HEEDING_CTRL_C, run_program
from harness.support import Database

DURABLE: Final = [sys.executable, "-m", "durable"]


@pytest.fixture
def line() -> CommandLine:
    store = still_store()
    fill(store)
    return CommandLine(store)


@pytest.fixture
def stores_url(database: Database) -> Iterator[list[str]]:
    """The options that name a real store, whose tables are there."""
    with database.store() as store:
        store.list()
    yield ["--url", database.url, "--schema", database.schema]


def test_0_done(line: CommandLine) -> None:
    assert line("list").status == line("show", "ok-1", "--check").status == line("wait", "ok-1").status == 0
    assert line("wait", "ok-1").out == '"done"\n'


def test_1_the_answer_is_bad_news(line: CommandLine) -> None:
    for command in (("show", "checkout-7f3a", "--check"), ("wait", "checkout-7f3a"), ("watch", "checkout-7f3a")):
        assert line(*command).status == 1, command
    assert line("wait", "gone-1").err == "durable: run 'gone-1' was cancelled\n"
    assert "has failed (httpx.ReadTimeout in book courier)" in line("wait", "checkout-7f3a").err
    assert line("show", "checkout-7f3a").status == 0  # only `--check` makes it bad news


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("bogus",), "No such command 'bogus'"),
        (("lst",), "Did you mean 'list'?"),
        (("list", "foo:bar"), "unknown qualifier 'foo'. Qualifiers are id:, parent:, workflow:, status:"),
        (("list", "statsu:failed"), "did you mean status:?"),
        (("list", "status:done"), "unknown status 'done': one of queued, running"),
        (("list", "since:yesterday"), "since is so long ago, like 90s"),
        (("list", "a", "b"), "two words without a qualifier"),
        (("list", 'workflow:"my flow'), "a quotation begins and does not end"),
        (("list", "workflow:"), "nothing follows 'workflow:'"),
        (("list", "--columns", "nothing"), "there is no column 'nothing': status, run"),
        (("list", "--limit", "0"), "0 is not in the range"),
        (("show",), "Missing argument 'ID'"),
        (("retry",), "which runs? Give IDs, or --where QUERY"),
        (("retry", "a", "--where", "status:failed"), "and not both"),
        (("cancel", "--where", ""), "--where says nothing"),
        (("signal", "left-1", "go", "{broken"), "the payload is no JSON"),
        (("signal", "left-1", "go", "@/nowhere"), "the payload cannot be read"),
        (("signal", "left-1", "go", "NaN"), "the payload is no JSON"),
        (("signal", "left-1", "durable:end:left-1/child", "1"), "must not begin with 'durable:'"),
        (("fork", "ok-1"), "from_step= says from which step its fork goes on"),
        (("fork", "ok-1", "--from-step", "nothing"), "has no record of a step 'nothing'"),
        (("fork", "--where", "status:failed", "--new-id", "x"), "a pattern with {id} in it"),
        (("purge", "--older-than", "old"), "'--older-than': the time is a number of seconds"),
        (("start", "orders", "--meta", "x"), "--meta is KEY=VALUE"),
        (("start", "orders", "--delay", "soon"), "'--delay': the time is a number of seconds"),
        (("export",), "which runs?"),
        (("import", "/dev/null/nowhere"), "No such file or directory|Not a directory"),
    ],
)
def test_2_a_mistake_in_the_command_line(line: CommandLine, command: tuple[str, ...], said: str) -> None:
    """Said in one line, which names it and the way out; as JSON with `--json`."""
    ended = line(*command)
    assert ended.status == 2, ended
    assert ended.err.count("\n") == 1
    assert any(part in ended.err for part in said.split("|")), ended.err
    assert ended.out == ""
    told = json.loads(line(*command, "--json").err)
    assert told["exit"] == 2
    assert set(told) == {"error", "message", "advice", "exit"}


def test_3_no_such_run(line: CommandLine) -> None:
    for command in (
        ("show", "nobody"),
        ("wait", "nobody"),
        ("watch", "nobody"),
        ("cancel", "nobody"),
        ("retry", "nobody"),
        ("fork", "nobody", "--from-step", "x"),
        ("signal", "nobody", "approved", "1"),
        ("delete", "nobody", "--yes"),
        ("export", "nobody"),
        ("list", "--after", "nobody"),
        ("show", "ok-1", "--step", "nothing"),
    ):
        ended = line(*command)
        assert ended.status == 3, (command, ended)
        assert "nobody" in ended.err or "nothing" in ended.err


def test_a_signal_is_sent_to_a_run_or_kept_for_one_that_is_to_come(line: CommandLine) -> None:
    """Nothing is sent to a run that is not there, unless that is said."""
    line("signal", "nobody", "approved")
    assert line.store.signals("nobody") == []
    assert (
        line("signal", "nobody", "approved", "1", "--create-later").out
        == "kept approved for nobody, which is not there yet\n"
    )
    assert [signal.payload for signal in line.store.signals("nobody")] == ["1"]
    assert line("signal", "left-1", "approved", "1", "--dedup", "a").out == "sent approved to left-1\n"
    told = json.loads(line("signal", "left-1", "approved", "2", "--dedup", "a", "--json").out)
    assert told == {"id": "left-1", "signal": "approved", "done": True, "isThere": True}
    assert [signal.payload for signal in line.store.signals("left-1")] == ["1"]


def test_4_refused(line: CommandLine) -> None:
    assert "has ended: it is completed" in line("cancel", "ok-1").err
    assert "is completed, and has a result" in line("retry", "ok-1").err
    assert "is there already" in line("fork", "checkout-7f3a", "--new-id", "left-1").err
    for command in (("cancel", "ok-1"), ("retry", "ok-1"), ("fork", "checkout-7f3a", "--new-id", "left-1")):
        assert line(*command).status == 4, command

    def held(step: durable.Step, deps: Any) -> None:
        step("delete", lambda: ended.append(line("delete", "held", "--yes")))

    ended: list[Any] = []
    durable.run(None, held, id="held", store=line.store)
    assert ended[0].status == 4
    assert "is being executed" in ended[0].err


def test_5_the_database(database: Database, stores_url: list[str]) -> None:
    """Not there, or without tables: nothing is made by a look."""
    gone = run_program([*DURABLE, "list", "--url", "postgresql://localhost:1/x", "--json"], check=False)
    assert gone.returncode == 5
    assert json.loads(gone.stderr)["error"] == "StoreUnavailable"
    bare = run_program([*DURABLE, "list", "--url", database.url, "--schema", "no_such_schema"], check=False)
    assert bare.returncode == 5
    assert "durable migrate" in bare.stderr
    assert run_program([*DURABLE, "list", *stores_url], check=False).returncode == 0


def test_6_not_confirmed(line: CommandLine) -> None:
    """Where no terminal can be asked; where the answer is no; where the number is not typed. Nothing is done."""
    before = [(run.id, run.status) for run in line.store.runs(limit=1000)]
    for command in (
        ("delete", "ok-1"),
        ("purge", "--older-than", "1s"),
        ("retry", "--where", "status:failed"),
        ("retry", "checkout-7f3a", "checkout-7e91"),
        ("cancel", "--where", "queue:orders"),
        ("delete", "--where", "workflow:report"),
    ):
        ended = line(*command)
        assert ended.status == 6, (command, ended)
        assert "not confirmed, and nothing was done" in ended.err
        assert line(*command, width=100, typed="n\n").status == 6
    for number in range(101):
        durable.start("many", store=line.store, id=f"many-{number:03}")
    before += [(run.id, run.status) for run in line.store.runs(limit=1000) if run.workflow == "many"]
    said = line("cancel", "--where", "workflow:many", width=100, typed="100\n")
    assert said.status == 6
    assert "cancel 101 runs. Type the number to confirm" in said.err
    assert sorted((run.id, run.status) for run in line.store.runs(limit=1000)) == sorted(before)
    assert line("cancel", "--where", "workflow:many", width=100, typed="101\n").out.startswith("101 runs cancelled")


def test_124_the_time_is_over(line: CommandLine) -> None:
    for command in (("wait", "left-1"), ("watch", "left-1"), ("watch", "status:queued")):
        ended = line(*command, "--timeout", "0")
        assert ended.status == 124, (command, ended)


@pytest.mark.long(4)
def test_130_ctrl_c(database: Database, stores_url: list[str]) -> None:
    """Without a traceback."""
    with database.store() as store:
        durable.start("orders", store=store, id="waits")
    looks = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'durable' AND datname = current_database()"
        " AND query LIKE '%%durable_steps%%'"
    )
    others = set(database.execute(looks))
    process = subprocess.Popen(
        [*HEEDING_CTRL_C, *DURABLE, "watch", "waits", *stores_url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not set(database.execute(looks)) - others:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err


def test_every_status_has_a_test_here() -> None:
    """The table of statuses is what the page shows."""
    tested = {
        int(name.split("_")[1]) for name in globals() if name.startswith("test_") and name.split("_")[1].isdigit()
    }
    assert tested == set(STATUSES)


def test_a_reader_that_goes_away_is_no_error(stores_url: list[str], database: Database) -> None:
    """`durable list | head -1`."""
    with database.store() as store:
        durable.start_many("orders", [durable.Start(id=f"o-{n}") for n in range(500)], store=store)
    command = shlex.join([*DURABLE, "list", "--limit", "500", *stores_url])
    done = run_program(["bash", "-c", f"set -o pipefail; {command} | head -1"], check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("STATUS\tRUN")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('url = "postgresql://me:secret@db/x"', "has a password in it"),
        ('url-env = "NOT_SET_ANYWHERE"', "$NOT_SET_ANYWHERE is not set"),
        ('ulr = "postgresql://db/x"', "has no key 'ulr'"),
        ("", "no database was named: pass --url"),
        ("url = ", "cannot be read"),
    ],
)
def test_a_mistake_in_pyproject_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2, and without the password."""
    (tmp_path / "pyproject.toml").write_text(f"[tool.durable]\n{table}\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    for variable in ("DURABLE_URL", "DATABASE_URL", "PGHOST", "PGSERVICE"):
        monkeypatch.delenv(variable, raising=False)
    assert app.run(["list"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "secret" not in err


def test_the_url_comes_from_the_first_that_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Database, stores_url: list[str]
) -> None:
    """Option, $DURABLE_URL, $DATABASE_URL, then the file; the schema from there too."""
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.durable]\nurl = "postgresql://localhost:1/x"\nschema = "{database.schema}"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost:2/x")
    monkeypatch.setenv("DURABLE_URL", database.url)
    assert app.run(["list"]) == 0
    monkeypatch.delenv("DURABLE_URL")
    assert app.run(["list", "--url", database.url]) == 0
    with contextlib.suppress(KeyError):
        del os.environ["DATABASE_URL"]


def test_what_the_terminal_would_obey_is_not_written(line: CommandLine) -> None:
    """Ids, keys and messages may come from anywhere."""
    durable.start("evil\x1b[31m", store=line.store, id="\x1b]0;pwned\x07")
    for width in (None, 100):
        for command in (("list",), ("show", "\x1b]0;pwned\x07"), ("list", "--columns", "run,workflow")):
            assert "\x1b" not in line(*command, width=width).out
    assert moment(0) < NOW
