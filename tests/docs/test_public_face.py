"""The public face is what `tests/golden/public.txt` says: no name and no parameter comes, goes or moves without being seen."""

from __future__ import annotations

import difflib
import inspect
import sys
from enum import Enum
from pathlib import Path

from msgspec import Struct

import durable
from durable import codecs, errors, events, records, snapshots, stores, testing
from harness.programs import run_program

HERE = Path(__file__).resolve().parents[1]
GOLDEN = HERE / "golden" / "public.txt"


def test_the_public_face_is_the_golden_one() -> None:
    """A change that is meant is renewed with it, and read in the same commit."""
    shown = run_program([sys.executable, HERE / "harness" / "public_face.py"], check=True).stdout
    changes = list(difflib.unified_diff(GOLDEN.read_text("utf-8").splitlines(), shown.splitlines(), lineterm="", n=0))
    renewed = f"{sys.executable} tests/harness/public_face.py > tests/golden/public.txt"
    assert not changes, "\n".join([f"the public face has changed; if that is meant: {renewed}", *changes])


def test_the_golden_file_has_what_users_call() -> None:
    """Of each kind of entry of the page one, so that a parser which finds nothing is noticed."""
    text = GOLDEN.read_text("utf-8")
    for part in (
        "dir(durable): AccessDenied, ",
        "\ndurable.run(deps: ",
        "\nclass durable.Step(",
        "\n    __call__(self, name: ",
        "\ndurable.aio.cancel(",
        "\ndurable.stores.postgres(url: ",
        "\nclass durable.errors.LeaseLost(",
        "\nclass durable.events.StepBegan(",
        "\nclass durable.codecs.JsonCodec(",
        "\n    test_",
        "\nclass durable.clocks.Clock",
    ):
        assert part in text, part


def test_no_value_and_no_exception_is_named_by_a_private_module() -> None:
    """Records and tracebacks say where a class is: what a user can reach under a public name is not to move with our files."""
    modules = (durable, codecs, errors, events, records, snapshots, stores, testing)
    public = {getattr(module, name) for module in modules for name in module.__all__ if name[0].isupper()}
    kept = (Struct, BaseException, Enum, tuple)
    named = [f"{one.__module__}.{one.__qualname__}" for one in public if inspect.isclass(one) and issubclass(one, kept)]
    assert "durable.snapshots.Snapshot" in named
    assert [name for name in named if "._" in name] == []
