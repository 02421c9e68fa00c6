"""Shapes of code that may come to stand in the product, each calling the machine's own: a process says what becomes of them.

For each shape: called from `durable` in a world that is watched, from `durable` in none, and from elsewhere in a world that is watched.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from simulation.tripwire import Touched, is_laid, watched  # before anything imports the product

SHAPES: Final = {
    "a module's attribute": "import time\ndef act(): time.monotonic()",
    "an imported name": "from time import monotonic\ndef act(): monotonic()",
    "another name for it": "from time import monotonic as clock\nnow = clock\ndef act(): now()",
    "a module under another name": "import time as chronology\ndef act(): chronology.time_ns()",
    "a default argument": "import time\ndef act(clock=time.monotonic): clock()",
    "a keyword's default": "import time\ndef act(*, clock=time.perf_counter): clock()",
    "a class attribute": "import time\nclass Clock:\n    now = time.monotonic\ndef act(): Clock().now()",
    "a static method": "import time\nclass Clock:\n    now = staticmethod(time.time)\ndef act(): Clock.now()",
    "a partial": "import time\nfrom functools import partial\nnow = partial(time.clock_gettime, 1)\ndef act(): now()",
    "an alias of the module": "import time\nnow = time.monotonic\ndef act(): now()",
    "a closure": "import time\ndef made(clock):\n    return lambda: clock()\nact = made(time.monotonic)",
    "a table": "import time\nCLOCKS = {'real': time.monotonic}\ndef act(): CLOCKS['real']()",
    "by map": "import time\ndef act(): list(map(time.clock_gettime, [1]))",
    "in a lambda": "import time\nact = lambda: time.monotonic()",
    "time.sleep": "import time\ndef act(): time.sleep(0.001)",
    "threading.Event.wait": "import threading\ndef act(): threading.Event().wait(0.001)",
    "a condition": "import threading\ndef act():\n    changed = threading.Condition()\n    with changed: changed.wait(0.001)",
    "a semaphore": "import threading\ndef act(): threading.Semaphore(0).acquire(timeout=0.001)",
    "a lock with a timeout": "import threading\nlock = threading.Lock()\ndef act(): lock.acquire(timeout=0.001)",
    "a reentrant lock with a timeout": "from threading import RLock\nlock = RLock()\ndef act(): lock.acquire(timeout=0.001)",
    "a future's result": (
        "from concurrent.futures import Future, TimeoutError\n"
        "def act():\n    try: Future().result(0.001)\n    except TimeoutError: pass"
    ),
    "a queue": "import queue\ndef act():\n    try: queue.Queue().get(timeout=0.001)\n    except queue.Empty: pass",
    "a simple queue": (
        "from queue import Empty, SimpleQueue\ndef act():\n    try: SimpleQueue().get(timeout=0.001)\n    except Empty: pass"
    ),
    "a thread": "import threading\ndef act(): threading.Thread(target=int).start()",
    "a thread of a subclass": "from threading import Thread\nclass Mine(Thread): pass\ndef act(): Mine(target=int).start()",
    "a pool of threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def act():\n    with ThreadPoolExecutor(1) as pool: pool.submit(int)"
    ),
    "random.random": "import random\ndef act(): random.random()",
    "random.getrandbits, imported": "from random import getrandbits\ndef act(): getrandbits(63)",
    "random.uniform in a partial": "import random\nfrom functools import partial\nact = partial(partial(random.uniform, 0), 1)",
    "os.urandom": "import os\ndef act(): os.urandom(8)",
    "secrets.token_hex": "import secrets\ndef act(): secrets.token_hex(8)",
    "secrets.token_hex, imported": "from secrets import token_hex\ndef act(): token_hex(8)",
    "random.SystemRandom": "import random\nchance = random.SystemRandom()\ndef act(): chance.random()",
    "uuid.uuid4": "import uuid\ndef act(): uuid.uuid4()",
    "socket.create_connection": (
        "import socket\ndef act():\n    try: socket.create_connection(('127.0.0.1', 1), 0.1).close()\n    except OSError: pass"
    ),
    "a socket": "import socket\ndef act(): socket.socket().close()",
    "psycopg.connect": (
        "import psycopg\ndef act():\n    try: psycopg.connect('host=127.0.0.1 port=1')\n    except psycopg.Error: pass"
    ),
    "asyncio.sleep": "import asyncio\ndef act(): asyncio.sleep(1).close()",
    "asyncio.sleep, imported": "from asyncio import sleep\ndef act(): sleep(1).close()",
}
NOT_TOUCHED: Final = {
    "asyncio.sleep(0)": "import asyncio\ndef act(): asyncio.sleep(0).close()",
    "a lock that is free": "import threading\nlock = threading.Lock()\ndef act():\n    with lock: pass",
    "an event that is set": "import threading\ndef act():\n    event = threading.Event()\n    event.set()\n    event.wait(1)",
    "a line of the log": "import logging\ndef act(): logging.getLogger('durable').info('told')",
    "chance with a seed": "import random\nchance = random.Random(7)\ndef act(): chance.random()",
}


def made(source: str, module: str) -> Any:
    """The function `act` of such a module."""
    names: dict[str, Any] = {"__name__": module}
    exec(source, names)
    act = names["act"]
    if not hasattr(act, "__code__"):  # a partial: it is called from there, too
        exec("def called(act=act): act()", names)
        act = names["called"]
    return act


def outcome(source: str, module: str, *, in_a_world: bool) -> str:
    """Whether it is raised, and is in the list."""
    act = made(source, module)
    world: AbstractContextManager[list[str]] = watched() if in_a_world else nullcontext([])
    with world as touched:
        try:
            act()
        except Touched:
            return "raised" if touched else "not in the list"
    return "swallowed" if touched else "passed"


if __name__ == "__main__":
    assert is_laid
    told = {
        name: [
            outcome(source, "durable.stores.shape", in_a_world=True),
            outcome(source, "durable.stores.shape", in_a_world=False),
            outcome(source, "elsewhere.shape", in_a_world=True),
        ]
        for name, source in [*SHAPES.items(), *NOT_TOUCHED.items()]
    }
    print(json.dumps(told))
