"""What all commands share: global options, how problems are said, and how they end."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar, cast

import click

F = TypeVar("F", bound=Callable[..., Any])

DONE: Final = 0
BAD_NEWS: Final = 1
USAGE: Final = 2
NO_SUCH_RUN: Final = 3
REFUSED: Final = 4
DATABASE: Final = 5
NOT_CONFIRMED: Final = 6
TIMED_OUT: Final = 124
INTERRUPTED: Final = 130

# What each exit status means; the page on the command line shows this table.
STATUSES: Final = {
    DONE: "done",
    BAD_NEWS: "the answer is bad news: a failed run (`show --check`, `wait`, `watch`), or `doctor` found an error",
    USAGE: "a mistake in the command line, or in what it says",
    NO_SUCH_RUN: "no such run, or schedule",
    REFUSED: "refused: the run is being executed, has ended, or is not what was said",
    DATABASE: "the database cannot be reached, denies access, or is not suitable",
    NOT_CONFIRMED: "not confirmed; nothing was done",
    TIMED_OUT: "the time of `--timeout` was over",
    INTERRUPTED: "Ctrl-C",
}


class Failure(Exception):
    """The end of a command whose reason is said."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def seconds(least: float = 0.0) -> Callable[[str], float]:
    """An option's type: a length of time, as seconds: `30`, `90s`, `10m`. At least `least` of them."""

    def convert(value: str) -> float:
        from durable.errors import InvalidArgument  # noqa: PLC0415 -- help needs none of it
        from durable.operate.filters import parse_seconds  # noqa: PLC0415

        try:
            given = parse_seconds(str(value))
        except InvalidArgument as problem:
            raise click.BadParameter(str(problem)) from None
        if given < least:
            raise click.BadParameter(f"{value} is too short: at least {least:g} seconds")
        return given

    return convert


class Given:
    """The global options, wherever on the command line they stand."""

    def __init__(self) -> None:
        self.url: str | None = None
        self.table: str | None = None
        self.schema: str | None = None
        self.prefix: str | None = None
        self.json = False
        self.no_color = False
        self.quiet = False
        self.verbose = False
        self.yes = False
        self.timeout: float | None = None


def _keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    given = ctx.ensure_object(Given) if ctx.parent is None else ctx.find_object(Given)
    if given is None:
        ctx.obj = given = Given()
    if value is not None and value is not False:
        setattr(given, str(parameter.name), value)
    return value


def _options() -> list[Callable[[Any], Any]]:
    def option(*names: str, **told: Any) -> Callable[[Any], Any]:
        return click.option(*names, expose_value=False, callback=_keep, **told)

    return [
        option(
            "--url", metavar="URL", help="The database; by default $DURABLE_URL, $DATABASE_URL, or pyproject.toml's."
        ),
        option("--table", metavar="NAME", help="The documented table (durable_snapshots)."),
        option("--schema", metavar="NAME", help="The schema of the tables."),
        option("--prefix", metavar="TEXT", help="What the store puts before each id."),
        option("--json", is_flag=True, help="JSON: one document for one thing, a line each for many."),
        option("--no-color", is_flag=True, help="No colours; $NO_COLOR does the same."),
        option("--quiet", "-q", is_flag=True, help="Say nothing but data and errors."),
        option("--verbose", "-v", is_flag=True, help="Of an error that is not expected, the whole traceback."),
        option("--yes", "-y", is_flag=True, help="Confirm beforehand what is asked."),
        option(
            "--timeout",
            type=seconds(),
            metavar="SECONDS",
            help="How long wait and watch wait; by default as long as it takes.",
        ),
    ]


def global_options(command: F) -> F:
    """The options that every command has."""
    decorated: Any = command
    for option in reversed(_options()):
        decorated = option(decorated)
    return cast(F, decorated)


class OurCommand(click.Command):
    """A command that has the global options too, in a section of their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = list(self.params)

        @global_options
        def carrier() -> None:
            """Holds the parameters."""

        shared: list[click.Parameter] = list(reversed(getattr(carrier, "__click_params__", [])))
        taken = {name for parameter in own for name in parameter.opts}
        self.shared = [one for one in shared if not taken & set(one.opts)]
        self.params = [*own, *self.shared]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Its own first."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": [], "Global options": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                groups["Global options" if parameter in self.shared else "Options"].append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def command(name: str, **told: Any) -> Callable[[Callable[..., Any]], OurCommand]:
    """A command of this name."""
    return click.command(name, cls=OurCommand, context_settings={"help_option_names": ["-h", "--help"]}, **told)


def given_options() -> Given:
    """The global options of the command that is being executed."""
    found = click.get_current_context().find_object(Given)
    return Given() if found is None else found


def status_of(problem: BaseException) -> int:
    """With which status a command ends for which this was raised."""
    from durable import errors  # noqa: PLC0415 -- when there is a problem

    kinds: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], int], ...] = (
        (click.UsageError, USAGE),
        (errors.RunNotFound, NO_SUCH_RUN),
        (errors.WaitTimedOut, TIMED_OUT),
        (errors.StoreError, DATABASE),
        ((errors.OwnershipError, errors.HistoryError), REFUSED),
        (errors.DurableError, USAGE),
    )
    return next((status for kind, status in kinds if isinstance(problem, kind)), BAD_NEWS)


def say_problem(problem: BaseException, *, wants_json: bool, is_verbose: bool = False) -> int:
    """Say on stderr what went wrong; the status."""
    status = status_of(problem)
    advice = str(getattr(problem, "advice", "") or "")
    said = problem.format_message() if isinstance(problem, click.ClickException) else str(problem)
    if isinstance(problem, click.UsageError) and problem.ctx is not None:
        advice = advice or f"{problem.ctx.command_path} --help says what it takes."
    said = " ".join(said.split())
    if is_verbose:
        traceback.print_exception(problem)
    if wants_json:
        told = {"error": type(problem).__name__, "message": said, "advice": advice, "exit": status}
        sys.stderr.write(json.dumps(told, ensure_ascii=False) + "\n")
    else:
        from durable.errors import DurableError  # noqa: PLC0415 -- when there is a problem

        ours = isinstance(problem, (DurableError, click.ClickException))
        name = "" if ours else f"{type(problem).__name__}: "
        sys.stderr.write(f"durable: {name}{said}{'' if not advice or advice in said else ' ' + advice}\n")
    return status


def fail(message: str, status: int) -> NoReturn:
    """End the command with this status, having said why."""
    context = click.get_current_context(silent=True)
    if context is not None and given_options().json:
        sys.stderr.write(json.dumps({"error": "Refused", "message": message, "advice": "", "exit": status}) + "\n")
    else:
        sys.stderr.write(f"durable: {message}\n")
    raise Failure(status)
