"""Help needs no database: what is imported for it, and for completion; and that each command is told of on the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from durable._commands.app import COMMANDS
from harness.programs import run_program

HEAVY: Final = ("psycopg", "psycopg_pool", "rich", "tenacity", "asyncio", "msgspec")
LOOK: Final = """
import json, sys
sys.argv = ["durable", *json.loads(sys.argv[1])]
from durable.__main__ import main
try:
    main()
except SystemExit as end:
    sys.stderr.write(json.dumps([end.code, sorted(sys.modules)]))
"""


def imported(*arguments: str, **environment: str) -> tuple[int, set[str], str]:
    """The exit status, the modules that a command has loaded, and what it wrote."""
    command = [sys.executable, "-c", LOOK, json.dumps(arguments)]
    done = run_program(command, env={**os.environ, **environment}, check=True)
    status, modules = json.loads(done.stderr.rpartition("\n")[2])
    return status, set(modules), done.stdout


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS if name != "worker")], ids=str)
def test_help_imports_neither_a_driver_nor_what_draws(command: tuple[str, ...]) -> None:
    status, modules, out = imported(*command, "--help")
    assert status == 0
    assert out.startswith("Usage: durable")
    assert modules.isdisjoint(HEAVY), modules & set(HEAVY)
    assert "click" in modules


def test_completion_imports_neither() -> None:
    """Of commands and options, as the shell asks for them."""
    status, modules, out = imported(_DURABLE_COMPLETE="bash_complete", COMP_WORDS="durable li", COMP_CWORD="1")
    assert "list" in out
    assert modules.isdisjoint(HEAVY)
    assert status == 0


def test_a_list_does_import_a_driver() -> None:
    """So that the test above would see one."""
    status, modules, _ = imported("list", "--url", "postgresql://localhost:1/x")
    assert status == 5
    assert {"psycopg", "msgspec"} <= modules
    assert "rich" not in modules


def test_import_durable_needs_no_driver() -> None:
    code = "import durable, sys, json; print(json.dumps(sorted(sys.modules)))"
    modules = set(json.loads(run_program([sys.executable, "-c", code], check=True).stdout))
    assert modules.isdisjoint(HEAVY)


def test_each_public_name_is_loaded_at_its_first_use() -> None:
    """Every one, by itself in a fresh process: none needs another to have been loaded; and a wrong one is named."""
    code = (
        "import durable, subprocess, sys\n"
        "for name in dir(durable): getattr(durable, name)\n"
        "assert set(durable.__all__) <= set(dir(durable))\n"
        "from durable import *\n"
        "try: durable.nothing\n"
        "except AttributeError as problem: print(problem)\n"
    )
    assert (
        run_program([sys.executable, "-c", code], check=True).stdout == "module 'durable' has no attribute 'nothing'\n"
    )
    for name in ("run", "fork", "Worker", "StepFailed", "Snapshot", "Workflow", "alias", "stores", "aio"):
        run_program([sys.executable, "-c", f"import durable; durable.{name}"], check=True)


def test_the_worker_needs_no_click(tmp_path: Path) -> None:
    """In production nothing but the library has to be installed; the other commands say which extra is missing."""
    (tmp_path / "click").mkdir()
    (tmp_path / "click" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'click'\", name='click')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for arguments, status, said in (
        (["worker", "--help"], 0, "usage: durable worker"),
        (["worker", "nowhere:worker"], 2, "durable worker: there is no module 'nowhere'"),
        (["list"], 2, "pip install 'durable-postgres[cli]'"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "durable", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert (done.returncode, said in done.stdout + done.stderr) == (status, True), done
