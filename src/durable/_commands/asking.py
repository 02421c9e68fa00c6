"""Confirmation, and what several runs at once have come to."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Final

import click

from durable._commands.shared import NOT_CONFIRMED, REFUSED, fail, given_options, status_of

_TYPED: Final = 100  # runs, above which the number is to be typed
_TOLD: Final = 10  # refusals that are told one by one


def confirm(what: str, count: int) -> None:
    """Ask whether to do it, unless `--yes` says so; ends the command with 6 where there is no answer, or it is no."""
    if given_options().yes:
        return
    if not sys.stdin.isatty():
        fail(
            f"{what}: not confirmed, and nothing was done; --yes confirms it where no terminal can be asked",
            NOT_CONFIRMED,
        )
    if count > _TYPED:
        typed = click.prompt(f"{what}. Type the number to confirm", default="", show_default=False, err=True)
        agreed = str(typed).replace(",", "").strip() == str(count)
    else:
        agreed = click.confirm(f"{what}?", default=False, err=True)
    if not agreed:
        fail("not confirmed; nothing was done", NOT_CONFIRMED)


def tell_outcomes(outcomes: Iterable[Any], out: Any, done: str, *, dry_run: bool = False) -> int:
    """Say what became of each run; the exit status."""
    count, refused, worst = 0, 0, 0
    for outcome in outcomes:
        problem = outcome.problem
        if out.is_json:
            told = {"id": outcome.run_id, "done": problem is None and not dry_run}
            if problem is not None:
                told |= {"error": type(problem).__name__, "message": str(problem)}
            out.document(told)
        if problem is None:
            count += 1
        else:
            refused, worst = refused + 1, max(worst, status_of(problem))
            if not out.is_json and refused <= _TOLD:
                sys.stderr.write(f"durable: {' '.join(str(problem).split())}\n")
    if refused > _TOLD and not out.is_json:
        sys.stderr.write(f"durable: … and {refused - _TOLD:,} more\n")
    if not out.is_json:
        runs = "run" if count == 1 else "runs"
        said = f"{count:,} {runs} {'would be ' if dry_run else ''}{done}"
        out.line(said + (f", {refused:,} refused" if refused else ""))
    if not refused:
        return 0
    return worst if refused == 1 and not count else REFUSED
