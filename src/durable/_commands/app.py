"""The command `durable`: its commands are loaded when they are named, so that help and completion need no database driver."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from durable._commands.shared import Failure, OurCommand, global_options, say_problem

# Of each the module that has it, and what it is for.
COMMANDS: Final = {
    "list": ("listing", "the runs that a query finds"),
    "show": ("showing", "one run: its timeline, its steps, why it failed"),
    "watch": ("following", "follow runs until they have ended"),
    "wait": ("following", "wait for a run's end, and print its result"),
    "stats": ("listing", "how many runs there are, and how much room they take"),
    "workers": ("upkeep", "the workers that are at work"),
    "queues": ("queueing", "the queues, their limits, and what waits in them"),
    "pause": ("queueing", "begin none of a queue's runs"),
    "resume": ("queueing", "begin the runs of a paused queue again"),
    "schedules": ("schedules", "what begins runs by the clock: list, pause, resume, run, backfill, delete"),
    "start": ("starting", "start a run, and leave it to workers"),
    "signal": ("changing", "send a message to a run"),
    "cancel": ("changing", "stop runs, wherever they are executed"),
    "retry": ("changing", "let runs that have failed, or were left, be taken up again"),
    "fork": ("changing", "another run, of what one has recorded up to a step"),
    "delete": ("changing", "forget runs, with all that is recorded of them"),
    "purge": ("changing", "delete what ended long ago"),
    "export": ("moving", "runs as lines of JSON, to be taken elsewhere"),
    "import": ("moving", "put exported runs into this store"),
    "web": ("web", "a page that shows runs, on this machine"),
    "worker": ("delegated", "execute runs that were started"),
    "migrate": ("upkeep", "make the tables, or bring them up to this version"),
    "schema": ("upkeep", "the SQL that makes the tables, for a role that may"),
    "doctor": ("upkeep", "look for what is wrong with the database, or the way to it"),
    "completion": ("upkeep", "let the shell complete commands, options and ids"),
}
_ALIASES: Final = {"ls": "list"}


class LazyGroup(click.Group):
    """Knows its commands by name, and loads what is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's
        """Their names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- click's
        """One of them; None where there is none of this name."""
        name = _ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"durable._commands.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 -- click's
        """Without loading any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, said) for name, (_, said) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click has it, with the nearest name where there is none of this one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as problem:
            import difflib  # noqa: PLC0415 -- for a mistake

            close = difflib.get_close_matches(args[0], [*COMMANDS, *_ALIASES], n=1)
            if not close:
                raise
            raise click.UsageError(f"{problem.message} Did you mean {close[0]!r}?", ctx) from None


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A query is like  status:failed workflow:checkout since:2h.  durable COMMAND --help says more of each.",
)
@click.version_option(package_name="durable-postgres", prog_name="durable")
@global_options
def durable_command() -> None:
    """See and steer durable workflows in your own PostgreSQL."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status. What goes wrong is said on stderr, in one line or as JSON."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    wants_json = "--json" in given
    try:
        done: Any = durable_command.main(given, prog_name="durable", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as asked:
        click.echo(asked.format_message())
        return 0
    except click.Abort:
        sys.stderr.write("\n")
        return 130
    except click.ClickException as problem:
        return say_problem(problem, wants_json=wants_json)
    except Failure as problem:
        return problem.status
    except KeyboardInterrupt:
        return 130
    except SystemExit:  # click's own: of the shell's completion, or because nothing reads what we write
        if "_DURABLE_COMPLETE" in os.environ:
            raise
        return _end_quietly()
    except Exception as problem:
        is_verbose = not {"-v", "--verbose"}.isdisjoint(given)
        return say_problem(problem, wants_json=wants_json, is_verbose=is_verbose)
    return done if isinstance(done, int) else 0


def _end_quietly() -> int:
    """The reader of our output has gone: nothing more is written, also not at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


__all__ = ["COMMANDS", "LazyGroup", "OurCommand", "durable_command", "run"]
