"""`durable web`: the page, served by itself on this machine."""

from __future__ import annotations

import secrets
import socket
import sys
from pathlib import Path
from typing import Any, Final

import click

from durable._commands.shared import command, given_options

SHORTEST: Final = 32  # characters of a token in a file
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@command("web", short_help="a page that shows runs, on this machine")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8787, show_default=True, help="0 takes any that is free."
)
@click.option("--read-only", is_flag=True, help="Nothing on it changes anything.")
@click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE", help="The token, instead of a new one a start."
)
@click.option(
    "--allow-host", multiple=True, metavar="NAME", help="A name under which it is asked for; loopback ones are known."
)
@click.option("--open", "opens", is_flag=True, help="Open it in a browser.")
def web_command(
    host: str, port: int, read_only: bool, token_file: Path | None, allow_host: tuple[str, ...], opens: bool
) -> int:
    """Serve the page on this machine, and print the address that opens it.

    The address has a token in it that is made at each start: with it, runs are seen and steered. On another
    address than this machine's own it takes --token-file and --allow-host, and a proxy that speaks TLS in front of it.
    """
    _check_reach(host, token_file, allow_host)
    token = secrets.token_urlsafe(32) if token_file is None else _read_token(token_file)
    try:
        import uvicorn  # noqa: PLC0415 -- help needs no server

        from durable.web import app  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise click.UsageError(f"durable web needs {missing.name}: pip install 'durable-postgres[web]'") from None
    from durable._commands.finding import find_place, load_redaction, open_store  # noqa: PLC0415
    from durable._commands.output import Output  # noqa: PLC0415
    from durable.operate.actions import this_person  # noqa: PLC0415
    from durable.web._door import FIELD, Door  # noqa: PLC0415
    from durable.web._setup import LOOPBACK  # noqa: PLC0415

    given = given_options()
    out = Output(given)
    with open_store(given) as store, _listen(host, port) as listening:
        store.count_runs(limit=1)  # a database that is not there is told now, and not by a page
        door = Door(token, user=this_person())
        page = app(
            store,
            auth=door.auth,
            hosts=allow_host,
            read_only=read_only,
            redact=load_redaction(),
            title=_title(find_place(given).url),
        )
        served = door.before(page, frozenset((*LOOPBACK, *(name.lower() for name in allow_host))))
        bound = listening.getsockname()[1]
        name = allow_host[0] if host not in _LOOPBACK else f"[{host}]" if ":" in host else host
        address = f"http://{name}:{bound}/" + (f"?{FIELD}={token}" if token_file is None else "")
        out.line(address)
        sys.stdout.flush()  # into a pipe, too, while it serves
        out.note(
            "Ctrl-C ends it." if token_file is None else f"Add ?{FIELD}= and what {token_file} says. Ctrl-C ends it."
        )
        if opens:
            click.launch(address)
        config = uvicorn.Config(
            served,
            log_level="warning",
            access_log=False,  # it would have the token
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=1,  # open streams do not hold it up
        )
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def _check_reach(host: str, token_file: Path | None, names: tuple[str, ...]) -> None:
    if host in _LOOPBACK:
        return
    if token_file is None or not names:
        raise click.UsageError(
            f"--host {host} lets others reach it: say --token-file FILE, with at least {SHORTEST} characters in it, and "
            f"--allow-host NAME, the name that they ask for"
        )


def _read_token(file: Path) -> str:
    try:
        token = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise click.UsageError(f"--token-file {file} cannot be read: {type(problem).__name__}") from None
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise click.UsageError(
            f"--token-file {file} has no token: one line with at least {SHORTEST} letters, digits and signs, as "
            f"openssl rand -base64 33 makes it"
        )
    return token


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as problem:
        raise click.UsageError(
            f"{host}:{port} cannot be listened on ({problem.strerror or type(problem).__name__}): --port 0 takes a free one"
        ) from None


def _title(url: str | None) -> str:
    """The database and its server, for the page's head."""
    if url is None:
        return "embedded server"
    from psycopg import ProgrammingError  # noqa: PLC0415
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    try:
        told: dict[str, Any] = conninfo_to_dict(url)
    except ProgrammingError:
        return ""
    return " @ ".join(str(part) for part in (told.get("dbname"), told.get("host")) if part)
