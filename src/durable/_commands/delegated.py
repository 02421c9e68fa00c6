"""`durable worker` beside the other commands: its options are read by `worker` itself, which is there without click too."""

from __future__ import annotations

import click


@click.command(
    "worker",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    short_help="execute runs that were started",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker_command(arguments: tuple[str, ...]) -> int:
    """Execute runs that were started, until SIGTERM or Ctrl-C."""
    from durable._commands.worker import main  # noqa: PLC0415 -- the group's help needs none of it

    try:
        return main(arguments)
    except SystemExit as ended:  # argparse's, of a mistake, or after its help; a worker's own, which has left
        return ended.code if isinstance(ended.code, int) else 0
