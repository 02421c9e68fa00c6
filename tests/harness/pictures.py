"""The pictures of the page in the docs: `make pictures` renews docs/images/page-*.png.

A shop's afternoon is put into a store in memory, with moments of its own, and looked at in Chromium.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from msgspec import Raw

import durable
from durable.records import (
    AttemptRecord,
    EarlierExecution,
    ErrorRecord,
    ErrorSummary,
    Execution,
    FailureRecord,
    Header,
    Kind,
    Record,
    StepRecord,
    render,
)
from durable.stores import memory
from durable.stores.copies import StoredRun
from durable.web import app

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
HAS_CHROMIUM = Path(CHROMIUM).is_file() and os.access(CHROMIUM, os.X_OK)
TRACEBACK = """Traceback (most recent call last):
  File "shop/couriers.py", line 88, in book
    answer = self.http.post(url, json=parcel)
  File "httpx/_client.py", line 1144, in post
    return self.request("POST", url, …)
httpx.ReadTimeout: no answer within 3.0 s
"""
TIMEOUT = ErrorRecord(type="httpx:ReadTimeout", message="no answer within 3.0 s", traceback=TRACEBACK)


class Story:
    """A run as it is written down: each step at its moment."""

    def __init__(self, id: str, workflow: str, began: datetime, **input: Any) -> None:
        self.id, self.workflow, self.began = id, workflow, began
        self.records = [Record(0, Kind.INPUT, Kind.INPUT, json.dumps(input), began, 1)]
        self.epoch, self.owner, self.earlier = 1, "worker-1:4120", list[EarlierExecution]()
        self.taken = began

    def step(self, key: str, begin: float, end: float, value: Any = None, **told: Any) -> None:
        if "error" not in told:
            told["value"] = Raw(json.dumps(value).encode())
        record = StepRecord(
            name=key.partition("[")[0],
            ok="error" not in told,
            seconds=round(end - begin, 3),
            fingerprint="9b1e40c7d2aa8f31",
            **told,
        )
        self._add(key, Kind.STEP, render(record), end)

    def attempt(self, key: str, number: int, began: float, at: float, due: float, error: ErrorRecord | None) -> None:
        moment = self.began + timedelta(seconds=began)
        until = self.began + timedelta(seconds=due)
        name = key.partition("[")[0]
        self._add(
            key, Kind.ATTEMPT, render(AttemptRecord(name=name, number=number, began=moment, due=until, error=error)), at
        )

    def taken_up(self, at: float, owner: str) -> None:
        self.earlier.append(EarlierExecution(self.epoch, self.owner, self.taken.isoformat()))
        self.epoch, self.owner, self.taken = self.epoch + 1, owner, self.began + timedelta(seconds=at)

    def end(
        self, status: str, at: float, *, error: ErrorRecord | None = None, step: str = "", result: Any = None
    ) -> StoredRun:
        moment = self.began + timedelta(seconds=at)
        if status == "completed":
            self._add(Kind.RESULT, Kind.RESULT, json.dumps(result), at)
        if error is not None:
            self._add(Kind.FAILURE, Kind.FAILURE, render(FailureRecord(error=error, step=step)), at)
        execution = Execution(
            status=status,
            last_updated=moment.isoformat(),
            completed_at=moment.isoformat() if status == "completed" else None,
            started_at=self.began.isoformat(),
            epoch=self.epoch,
            owner=self.owner,
            began=self.taken.isoformat(),
            earlier=tuple(self.earlier),
            error=None if error is None else ErrorSummary(error.type, step),
        )
        metadata = {"version": 3, "tenant": "t7", "inputHash": "5d0c8e71b2"}
        header = Header(workflow_name=self.workflow, execution=execution, metadata=metadata)
        document = msgspec.json.encode(header).decode()
        return StoredRun(
            id=self.id, document=document, records=self.records, epoch=self.epoch, updated_at=moment.astimezone(UTC)
        )

    def _add(self, key: str, kind: str, text: str, at: float) -> None:
        self.records.append(Record(len(self.records), key, kind, text, self.began + timedelta(seconds=at), self.epoch))


def failed_checkout(now: datetime) -> StoredRun:
    """The run of the pictures: a retry, a signal, a crash, a sleep, and a failure."""
    story = Story(
        "checkout-7f3a", "checkout", now - timedelta(seconds=290), order=7, customer={"id": "u-1", "card": "4111…"}
    )
    story.step("fetch cart", 0.1, 0.58, {"items": [{"sku": "tea-04", "n": 2}], "euros": 42.5})
    story.step("reserve stock", 0.65, 3.4, True)
    story.attempt("quote[gls]", 1, 3.5, 4.7, 6.2, TIMEOUT)
    story.step("quote[ups]", 3.5, 4.91, {"euros": 7.9}, started=3)
    story.step("quote[dhl]", 3.5, 6.1, {"euros": 5.4}, started=3)
    story.step("quote[gls]", 6.2, 8.0, {"euros": 4.8}, attempt=2, started=3)
    story.attempt("approved", 1, 8.1, 8.1, 3608.1, None)
    story.step("approved", 17.6, 17.6, {"by": "lena"}, signal=1)
    story.taken_up(25.3, "worker-2:4121")
    story.step(
        "charge",
        25.3,
        28.1,
        {"payment": "p-31c9", "token": "tok_1f", "euros": 42.5, "captured": True},
        transaction=True,
    )
    story.step("receipt mail", 28.2, 28.9, "sent")
    story.attempt("book courier", 1, 29.0, 31.1, 33.1, TIMEOUT)
    story.attempt("book courier", 2, 29.0, 34.9, 39.4, TIMEOUT)
    story.step("book courier", 39.4, 42.6, error=TIMEOUT, attempt=3)
    return story.end("failed", 42.6, error=TIMEOUT, step="book courier")


def afternoon(now: datetime) -> Iterator[StoredRun]:
    """What else has happened."""
    chance = random.Random(7)
    steps = {
        "checkout": ["fetch cart", "reserve stock", "charge", "receipt mail", "book courier"],
        "nightly_report": ["query", "render", "upload"],
        "import_file": ["download", "parse", "load"],
        "agent": ["plan", "search", "answer"],
    }
    for number in range(240):
        workflow = chance.choices(list(steps), [6, 1, 3, 3])[0]
        began = now - timedelta(seconds=60 + number * 14 + chance.random() * 9)
        story = Story(f"{workflow}-{0x7F20 - number * 13:04x}", workflow, began, order=number)
        at, names = 0.0, steps[workflow]
        fails = chance.random() < (0.3 if 90 < number < 120 else 0.04)
        for place, name in enumerate(names):
            took = chance.lognormvariate(-0.6, 0.9)
            if fails and place == len(names) - 1:
                error = (
                    TIMEOUT
                    if workflow == "checkout"
                    else ErrorRecord(type="builtins:OSError", message="connection reset")
                )
                story.step(name, at, at + took, error=error)
                yield story.end("failed", at + took, error=error, step=name)
                break
            story.step(name, at, at + took, {"ok": True})
            at += took + 0.02
        else:
            status = "cancelled" if chance.random() < 0.03 else "completed"
            yield story.end("running" if number in (3, 41) else status, at)


def day(now: datetime) -> Iterator[StoredRun]:
    """What had happened before that afternoon: quiet at night, with a bad hour in the morning."""
    chance = random.Random(11)
    for hour in range(1, 24):
        for number in range(int(60 + 45 * math.sin(hour / 3.8))):
            began = now - timedelta(hours=hour, seconds=chance.random() * 3500 + 60)
            story = Story(f"import_file-{hour:02}{number:03}", "import_file", began, order=number)
            if chance.random() < (0.4 if hour == 8 else 0.03):
                error = ErrorRecord(type="builtins:OSError", message="connection reset")
                story.step("download", 0.0, 1.5, error=error)
                yield story.end("failed", 1.5, error=error, step="download")
            else:
                story.step("download", 0.0, 1.5, {"ok": True})
                yield story.end("completed", 1.5)


@contextlib.contextmanager
def shop() -> Iterator[Any]:
    """A store with that afternoon in it; three runs are being executed, and some wait."""
    store = memory()
    now = datetime.now(UTC)
    for run in [failed_checkout(now), *afternoon(now), *day(now)]:
        store.restore(run)
    going, over = threading.Barrier(4), threading.Event()

    def work(step: durable.Step, _: None) -> None:
        step("fetch cart", lambda: {"euros": 12})
        step("wait for the bank", lambda: (going.wait(20), over.wait(120))[1])

    workflow = durable.workflow(name="checkout", version=3)(work)
    names = ("checkout-81c0", "checkout-81b7", "checkout-81a9")
    threads = [
        threading.Thread(target=durable.run, args=(None, workflow), kwargs={"id": name, "store": store})
        for name in names
    ]
    for thread in threads:
        thread.start()
    going.wait(20)
    durable.start("nightly_report@3", id="nightly_report-1130", store=store, queue="reports", delay=timedelta(hours=5))
    durable.start("checkout@3", id="checkout-81d2", store=store, queue="orders")
    listening = [store.listen(f"worker-{number}", lambda: None) for number in (1, 2)]
    try:
        yield store
    finally:
        for one in listening:
            one.close()
        over.set()
        for thread in threads:
            thread.join()
        store.close()


@contextlib.contextmanager
def served(asgi: Any) -> Iterator[str]:
    """The address at which an application is served, on a thread."""
    started = threading.Event()
    server = uvicorn.Server(
        uvicorn.Config(asgi, host="127.0.0.1", port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    )

    async def noticed(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    startup = server.startup
    server.startup = noticed  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(60)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


SHOTS = (
    ("overview", "/", 1280, 800),
    ("runs", "/runs", 1280, 800),
    ("run", "/run?id=checkout-7f3a", 1280, 860),
    ("workers", "/workers", 1280, 460),
)


def take(directory: Path, url: str) -> Iterator[Path]:
    """Each page, light, dark and narrow."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 -- what else is here needs none

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for look, scheme, narrow in (("light", "light", False), ("dark", "dark", False), ("narrow", "light", True)):
            for name, path, width, height in SHOTS:
                page = browser.new_page(
                    viewport={"width": 420 if narrow else width, "height": height},
                    color_scheme=scheme,  # type: ignore[arg-type]
                    device_scale_factor=1,
                )
                page.on("console", lambda said: sys.exit(f"{said.type}: {said.text}"))
                page.goto(url + path)
                page.reload()  # with the counts that the first one has asked for
                if (
                    page.query_selector("[data-live]") is not None
                ):  # a function that is polled is what the policy forbids
                    page.wait_for_selector(".live.on", state="attached")
                file = directory / f"page-{name}-{look}.png"
                page.screenshot(path=file)
                page.close()
                yield file
        browser.close()


def main(directory: Path = IMAGES) -> None:
    with shop() as store, served(app(store, auth=lambda _: "write", title="shop @ db-1")) as url:
        for file in take(directory, url):
            print(f"{file.stat().st_size:>8,} {file}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
