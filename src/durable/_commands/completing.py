"""What the shell completes from the database: ids of runs. It is quick, or there is nothing; and never a word about why."""

from __future__ import annotations

from typing import Any, Final

import click

_MOST: Final = 50  # ids, the newest
_PATIENCE: Final = 0.3  # seconds: a person has pressed a key


def complete_id(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 -- click's
    """The ids that begin with what is typed, the newest first; none where the database does not say them at once.

    The thread that asks is left behind then: it ends with the process.
    """
    import contextlib  # noqa: PLC0415
    import logging  # noqa: PLC0415 -- only where something is completed
    import threading  # noqa: PLC0415
    import warnings  # noqa: PLC0415

    from durable._commands.shared import Given  # noqa: PLC0415

    found: list[str] = []
    logging.disable()
    warnings.simplefilter("ignore")
    given = ctx.find_object(Given) or Given()

    def ask() -> None:
        with contextlib.suppress(Exception):  # a shell that completes has no place for it
            found.extend(_ask(given, incomplete))

    try:
        from durable._commands import finding  # noqa: F401, PLC0415  # pyright: ignore[reportUnusedImport] -- not on the limit's time

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
    except (ImportError, RuntimeError):  # a half of an installation; no thread more
        return []
    thread.join(_PATIENCE)
    taken: Any = ctx.params.get("ids") or ()
    return [run_id for run_id in tuple(found) if run_id not in taken]


def _ask(given: Any, incomplete: str) -> list[str]:
    from durable._commands.finding import find_place, open_store  # noqa: PLC0415
    from durable.stores.reading import Filter  # noqa: PLC0415

    if find_place(given).url is None:  # an embedded server: a key that is pressed starts none
        return []
    with open_store(given) as store:
        return [line.id for line in store.runs(Filter(prefix=incomplete), limit=_MOST)]
