"""The tutorial, played as it is told: its programs are saved, its commands run, and its processes killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from harness.machine import prepared
from harness.programs import LIMIT, run_program

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "tutorial.md").read_text("utf-8")
WORKER: Final = ("-m", "durable", "worker", "shop:worker")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def program(name: str) -> str:
    (text,) = [text for text in blocks("python") if text.startswith(f"# {name}\n")]
    return text


def told(command: str, number: int = 0) -> list[str]:
    """The lines that the page shows under a command, without the numbers of its processes."""
    stories = [story for block in blocks("console") for story in block.split("$ ")]
    shown = [story.removeprefix(command).strip() for story in stories if story.startswith(f"{command}\n")]
    return said(shown[number])


def said(text: str) -> list[str]:
    """Without the numbers of processes, and without when the log said something."""
    text = re.sub(r"^\S+ \S+ INFO process \d+: ", "log: ", text.strip(), flags=re.MULTILINE)
    return re.sub(r"^\[\d+\] ", "", text, flags=re.MULTILINE).splitlines()


class Shop:
    """The directory of the tutorial, and what runs in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.processes: list[subprocess.Popen[bytes]] = []

    def write(self, name: str, text: str) -> None:
        (self.home / name).write_text(text)

    def run(self, *arguments: str) -> list[str]:
        done = run_program([sys.executable, *arguments], cwd=self.home)
        assert (done.returncode, done.stderr) == (0, "")
        return said(done.stdout)

    def begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A program in another terminal; what it says goes into a file."""
        with self.log(len(self.processes)).open("wb") as log:
            process = subprocess.Popen([sys.executable, *arguments], cwd=self.home, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def log(self, number: int) -> Path:
        return self.home / f"terminal-{number}"

    def heard(self, process: subprocess.Popen[bytes]) -> list[str]:
        return said(self.log(self.processes.index(process)).read_text("utf-8"))

    def wait(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, [self.heard(process) for process in self.processes]
            time.sleep(0.02)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    prepared(tmp_path / ".durable")
    place = Shop(tmp_path)
    yield place
    for process in place.processes:
        process.kill()
        process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.long(30)
def test_the_shop_survives_as_the_tutorial_tells(shop: Shop) -> None:
    """Each part of the page in its order; only the bank is faster where nothing is killed meanwhile."""
    first = program("shop.py")
    shop.write("shop.py", first)
    shop.write("buy.py", program("buy.py"))
    shop.write("order.py", program("order.py"))

    assert shop.run("buy.py", "mug", "0") == told("python buy.py mug 0")
    assert shop.run("buy.py", "mug", "0") == told("python buy.py mug 0", 1)

    crashed = shop.begin("buy.py", "tea", "20")
    shop.wait(lambda: len(shop.heard(crashed)) == 2)
    kill(crashed)
    assert [*shop.heard(crashed), "Killed"] == told("python buy.py tea 20")
    shop.write(
        "shop.py", first.replace("order.get", "0 * order.get")
    )  # the input of a run stays what it was: a faster bank
    assert shop.run("buy.py", "tea", "20") == told("python buy.py tea 20", 1)

    (marked,) = [block for block in blocks("text") if block.startswith("@durable.workflow")]
    mark, worker = marked.split("\n", 1)[0], marked.rstrip().rsplit("\n", 1)[1]
    second = first.replace("def checkout", f"{mark}\ndef checkout") + f"\n\n{worker}\n"
    shop.write("shop.py", second)
    assert shop.run("order.py", "1", "lamp") == told("python order.py 1 lamp")
    here = shop.begin(*WORKER)
    shop.wait(lambda: len(shop.heard(here)) == 4)
    assert shop.heard(here) == told("durable worker shop:worker")

    there = shop.begin(*WORKER)
    shop.wait(lambda: shop.heard(there))
    assert shop.run("order.py", "20", "chair") == told("python order.py 20 chair")
    charging = "charge 42 euros for chair"
    shop.wait(lambda: charging in [*shop.heard(here), *shop.heard(there)])
    struck, other = (here, there) if charging in shop.heard(here) else (there, here)
    before = len(shop.heard(other))
    kill(struck)
    shop.wait(lambda: len(shop.heard(other)) == before + 2)
    (taken, ended) = [block for block in blocks("console") if not block.startswith("$ ")]
    assert shop.heard(other)[before:] == said(taken)

    assert shop.run("order.py", "5", "desk") == told("python order.py 5 desk")
    shop.wait(lambda: "charge 42 euros for desk" in shop.heard(other))
    other.send_signal(signal.SIGINT)
    assert other.wait(LIMIT) == 0
    stopped = shop.heard(other)[shop.heard(other).index("charge 42 euros for desk") :]
    assert stopped == said(ended)

    shop.write("shop.py", first.partition("def checkout")[0] + program("new.py").partition("\n")[2])
    newer = shop.begin(*WORKER)
    shop.wait(lambda: len(shop.heard(newer)) == 3)
    assert shop.heard(newer) == told("durable worker shop:worker", 1)
    newer.send_signal(signal.SIGINT)
    assert newer.wait(LIMIT) == 0

    (settings,) = blocks("toml")
    shop.write("pyproject.toml", settings)
    listed = [line.split("\t") for line in shop.run("-m", "durable", "list")]
    (shown,) = [block for block in blocks("console") if block.startswith("$ durable list\n")]
    assert [row[:3] for row in listed] == [line.split()[:3] for line in shown.replace("✓ ", "").splitlines()[1:]]
