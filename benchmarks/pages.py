"""What a page costs: CPU of the process and time to answer, at 100,000 runs in the store, medians of 50.

    .venv/bin/python benchmarks/pages.py [--runs 100000]

The budget: a list 50 ms, a run of 1,000 steps 100 ms, of CPU. What PostgreSQL takes is in the time, and not in the CPU. Then
what 50 pages cost that are left open: half of them lists, half of them runs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any, Final

import httpx

import durable
from durable.stores import embedded, postgres
from durable.stores._postgres.session import Session
from durable.web import app
from many_snapshots import fill

SCHEMA: Final = "durable_bench_pages"
TIMES: Final = 50
WATCHED: Final = 20.0  # seconds
PAGES: Final = {
    "overview": "/",
    "list": "/runs",
    "list, failed": "/runs?status=failed",
    "list, a search": "/runs?q=workflow:checkout%20since:1d",
    "run of 1,000 steps": "/run?id=long",
    "the same, its events": "/run?id=long&view=events",
    "the same, 200 of its steps": "/run?id=long&name=work",
}


def long_run(step: durable.Step, _: Any) -> None:
    """A thousand steps of one name."""
    for number in range(1000):
        step("work", lambda: {"number": 1}, key=f"work[{number}]")


async def measure(page: Any, path: str) -> tuple[float, float, int]:
    """Median CPU and time of a page in milliseconds, and its size in KiB."""
    took: list[float] = []
    cpu: list[float] = []
    size = 0
    async with httpx.AsyncClient(transport=httpx.ASGITransport(page), base_url="http://127.0.0.1") as client:
        for _ in range(TIMES + 3):
            began, spent = time.perf_counter(), time.process_time()
            answer = await client.get(path)
            cpu.append((time.process_time() - spent) * 1000)
            took.append((time.perf_counter() - began) * 1000)
            answer.raise_for_status()
            size = len(answer.content) // 1024
    return statistics.median(cpu[3:]), statistics.median(took[3:]), size


async def watched(page: Any, viewers: int) -> tuple[float, float]:
    """Statements a second, and CPU of this process in milliseconds a second, while so many pages are open."""
    asked, queue = 0, Session.queue

    def counted(session: Session, query: bytes, parameters: Any = None) -> Any:
        nonlocal asked
        asked += 1
        return queue(session, query, parameters)

    leave, opened = asyncio.Event(), asyncio.Semaphore(0)

    async def view(query: str) -> None:
        asks = True

        async def receive() -> dict[str, Any]:
            nonlocal asks
            if asks:
                asks = False
                return {"type": "http.request", "body": b"", "more_body": False}
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 200  # noqa: S101 -- else there is nothing to measure
                opened.release()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/live",
            "raw_path": b"/live",
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"127.0.0.1")],
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
        }
        await page(scope, receive, send)

    tasks = [asyncio.create_task(view("id=long" if number % 2 else "")) for number in range(viewers)]
    for _ in tasks:
        await opened.acquire()
    await asyncio.sleep(2)
    Session.queue = counted  # type: ignore[method-assign, assignment]
    spent, began = time.process_time(), time.monotonic()
    await asyncio.sleep(WATCHED)
    took, cpu = time.monotonic() - began, time.process_time() - spent
    Session.queue = queue  # type: ignore[method-assign]
    leave.set()
    await asyncio.gather(*tasks)
    return asked / took, cpu / took * 1000


def main() -> None:
    """Fill a store, and ask for each page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100_000)
    runs = parser.parse_args().runs
    with embedded() as server, postgres(server.url, schema=SCHEMA) as store:
        if store.count_runs(limit=1) == 0:
            fill(store, server.url, SCHEMA, snapshots=runs, records=5)
            durable.run(None, long_run, id="long", store=store)
        page = app(store, auth=lambda _: "write")
        print(f"{'page':<28}{'CPU ms':>8}{'ms':>8}{'KiB':>6}")
        for name, path in PAGES.items():
            cpu, took, size = asyncio.run(measure(page, path))
            print(f"{name:<28}{cpu:>8.1f}{took:>8.1f}{size:>6}", flush=True)
        for viewers in (1, 50):
            asked, spent = asyncio.run(watched(page, viewers))
            print(f"{viewers} open: {asked:.1f} statements/s, {spent:.0f} ms of CPU a second", flush=True)


if __name__ == "__main__":
    main()
