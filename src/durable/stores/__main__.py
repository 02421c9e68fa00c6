"""`python -m durable.stores`: prints the SQL that makes a store's tables, for a role that may create them."""

from __future__ import annotations

import argparse
import sys

from durable.errors import DurableError
from durable.stores import schema_sql


def main() -> None:
    """Print the SQL."""
    parser = argparse.ArgumentParser(prog="python -m durable.stores", description=schema_sql.__doc__)
    parser.add_argument("--table", default="durable_snapshots")
    parser.add_argument("--schema")
    parser.add_argument("--lock", help="the name of the lock table, if it is not to follow from the table's")
    parser.add_argument("--role", help="who is to run workflows afterwards, with no right to create anything")
    parser.add_argument("--since", type=int, default=0, help="leave out the migrations up to this number")
    try:
        sys.stdout.write(schema_sql(**vars(parser.parse_args())))
    except DurableError as problem:
        parser.error(str(problem))


if __name__ == "__main__":
    main()
