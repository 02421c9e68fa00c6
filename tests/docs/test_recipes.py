"""What the recipes run beside their snippets: web servers, and the commands of their deployments."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from psycopg.conninfo import make_conninfo

from durable.stores import embedded
from harness.machine import prepared
from harness.programs import LIMIT, run_program
from harness.support import Database

RECIPES: Final = Path(__file__).resolve().parents[2] / "docs" / "recipes"


@pytest.fixture
def environment(database: Database) -> dict[str, str]:
    """With a schema of the test's own at $DATABASE_URL."""
    database.execute(f"CREATE SCHEMA {database.schema}")
    return {**os.environ, "DATABASE_URL": make_conninfo(database.url, options=f"-csearch_path={database.schema}")}


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Which are gone when the test is over, with what they have started."""
    begun: list[subprocess.Popen[bytes]] = []
    yield begun
    for process in begun:
        process.terminate()
    for process in begun:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def section(page: str, heading: str) -> str:
    return (RECIPES / page).read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def block(text: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert found, (language, text)
    return found[1]


def asked(port: int, method: str) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/orders/7", method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None


@pytest.mark.long(10)
@pytest.mark.parametrize(
    ("framework", "port_option"),
    [
        ("FastAPI", "--port={}"),
        ("Flask under gunicorn", "--bind=127.0.0.1:{}"),
        ("Django", "--bind=127.0.0.1:{}"),
    ],
)
def test_a_web_application_starts_what_its_workers_execute(
    framework: str,
    port_option: str,
    environment: dict[str, str],
    processes: list[subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    """By the two commands of the page."""
    text = section("web.md", framework)
    (tmp_path / "shop.py").write_text(block(text, "python"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    web, worker = (command.removeprefix("$ ").split() for command in block(text, "console").splitlines())
    for command in (["-m", *web, port_option.format(port)], ["-m", *worker]):
        processes.append(subprocess.Popen([sys.executable, *command], cwd=tmp_path, env=environment))
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            assert asked(port, "GET") == (404, None)
            break
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
    assert asked(port, "POST")[0] == 202
    assert asked(port, "POST")[0] == 202
    while (answer := asked(port, "GET"))[1]["status"] != "completed":
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    assert answer == (200, {"status": "completed", "result": "payment for order 7"})


def _commands() -> list[Any]:
    """How each deployment starts its worker, and how long it leaves to a shutdown."""
    docker, systemd = section("deploy.md", "Docker"), section("deploy.md", "systemd")
    (in_image,) = re.findall(r"^CMD (\[.*\])$", block(docker, "dockerfile"), flags=re.MULTILINE)
    unit = block(systemd, "ini")
    (started,) = re.findall(r"^ExecStart=\S+/bin/(.*)$", unit, flags=re.MULTILINE)
    kubernetes = block(section("deploy.md", "Kubernetes"), "yaml")
    (command,) = re.findall(r"command: \[(.*)\]", kubernetes)
    return [
        pytest.param(
            json.loads(in_image), re.findall(r"stop_grace_period: (\d+)s", block(docker, "yaml")), id="docker"
        ),
        pytest.param(started.split(), re.findall(r"TimeoutStopSec=(\d+)", unit), id="systemd"),
        pytest.param(
            [word.strip('"') for word in command.split(", ")],
            re.findall(r"terminationGracePeriodSeconds: (\d+)", kubernetes),
            id="kubernetes",
        ),
    ]


@pytest.mark.long(5)
@pytest.mark.parametrize(("command", "limits"), _commands())
def test_the_command_of_a_deployment_works_and_leaves_in_good_order(
    command: list[str],
    limits: list[str],
    environment: dict[str, str],
    processes: list[subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    """Within its grace, which is shorter than what the supervisor waits."""
    assert command[:2] == ["durable", "worker"]
    grace = int(command[command.index("--grace") + 1])
    (limit,) = limits
    assert grace < int(limit)
    (tmp_path / "shop.py").write_text(block((RECIPES / "deploy.md").read_text("utf-8"), "python"))
    log = tmp_path / "log"
    with log.open("wb") as err:
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=tmp_path, env=environment, stderr=err)
    processes.append(process)
    deadline = time.monotonic() + LIMIT
    while "is at work" not in log.read_text("utf-8"):
        assert process.poll() is None, log.read_text("utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait(LIMIT) == 0


@pytest.mark.long(5)
def test_progress_is_told_as_the_page_shows(processes: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """The script of the page, killed half-way and started again; `durable watch` tells its records, a line each."""
    told, watched = section("progress.md", "In a script"), section("progress.md", "At a terminal")
    (tmp_path / "load.py").write_text(block(told, "python"))
    prepared(tmp_path / ".durable")
    (tmp_path / "pyproject.toml").write_text("[tool.durable]\nembedded = true\n")
    ((line, result),) = re.findall(r"^\$ python load\.py\n(load-1: completed.*)\n(\d+)$", told, flags=re.MULTILINE)
    with embedded(tmp_path / ".durable") as store:
        first = subprocess.Popen([sys.executable, "load.py"], cwd=tmp_path)
        processes.append(first)
        while (snapshot := store.load("load-1")) is None or len(snapshot.steps) < 5:
            assert first.poll() is None
            time.sleep(0.01)
        first.kill()
        first.wait()
        second = run_program([sys.executable, "-W", "error", "load.py"], cwd=tmp_path)
        assert second.returncode == 0, second.stderr
        assert second.stdout == f"{result}\n"
        assert re.sub(r"\d+ before", "… before", second.stderr) == re.sub(r"\d+ before", "… before", line) + "\n"
        shown = run_program([sys.executable, "-m", "durable", "watch", "load-1"], cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for row in block(watched, "text").splitlines():
        _, kind, key = row.split("\t")
        assert re.search(rf"^\S+\t{kind}\t{re.escape(key)}$", shown.stdout, flags=re.MULTILINE), row
