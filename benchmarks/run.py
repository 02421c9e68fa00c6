"""The benchmark: one table, the same as JSON, and with --page docs/performance.md and its charts.

    .venv/bin/python benchmarks/run.py [--only W1,W2] [--effort 1.0] [--no-peers] [--url URL] [--json FILE] [--page]

Every row takes turns of a few milliseconds with the limit that it is compared with; see lanes.py and pairs.py. DBOS and
Absurd are measured where they are installed (`pip install -r requirements/peers.txt`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import psycopg

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))  # the proxy that counts, and how a PgBouncer is started

import limits  # noqa: E402
import page  # noqa: E402
import workloads  # noqa: E402
from durable.stores import embedded  # noqa: E402
from lanes import ServerCpu  # noqa: E402
from results import Results  # noqa: E402


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"some of {','.join(workloads.ALL)}")
    parser.add_argument("--effort", type=float, default=1.0, help="0.2: a fifth of the pairs")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--url", help="a PostgreSQL to measure on (by default one that is started here)")
    parser.add_argument("--json", type=Path, help="where to save the results")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md, its JSON and its charts")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the page from its JSON again")
    options = parser.parse_args()
    if options.render:
        page.write(Results.load(ROOT / "docs" / f"{page.NAME}.json"), ROOT / "docs")
        return
    chosen = [name for name in workloads.ALL if name in (options.only or ",".join(workloads.ALL)).split(",")]
    results = measure(options.url, chosen, effort=options.effort, peers=not options.no_peers)
    print(page.table(results))
    if options.json:
        results.save(options.json)
    if options.page:
        page.write(results, ROOT / "docs")


def measure(url: str | None, chosen: list[str], *, effort: float, peers: bool) -> Results:
    """All of these workloads."""
    with ExitStack() as stack:
        given, url = url, url or stack.enter_context(embedded(ROOT / ".durable-benchmarks")).url
        limits.make_table(url)
        server = ServerCpu(url)
        bench = workloads.Bench(
            url, server, Results(machine(url, peers=peers)), effort, peers, own_server=given is None
        )
        start, before = time.monotonic(), _others(server)
        workloads.missing_peers(bench)
        for name in chosen:
            began = time.monotonic()
            workloads.ALL[name](bench)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        share = (_others(server) - before) / (time.monotonic() - start) / (os.cpu_count() or 1)
        bench.results.machine[page.OTHERS] = f"{share:.0%}"
        return bench.results


def _others(server: ServerCpu) -> float:
    """CPU seconds that this machine has spent on what is neither the benchmark nor its server."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split(None, 9)[1:9])
    ours = os.times()
    spent = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
    return spent - ours.user - ours.system - ours.children_user - ours.children_system - server.seconds()


def machine(url: str, *, peers: bool) -> dict[str, str]:
    """What the figures were measured on."""
    with psycopg.connect(url) as connection:
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
        settings = {name: _one(connection, f"SELECT current_setting('{name}')") for name in names}
    packages = ["psycopg", "msgspec", *(["dbos", "absurd-sdk"] if peers else [])]
    return {
        "PostgreSQL": settings.pop("server_version").split()[0],
        **settings,
        "Python": platform.python_version(),
        **{name: version for name in packages if (version := _version(name))},
        "processor": f"{os.cpu_count()} cores, {platform.machine()}",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _one(connection: psycopg.Connection, query: str) -> str:
    (value,) = connection.execute(query.encode()).fetchone() or ("",)
    return str(value)


if __name__ == "__main__":
    main()
