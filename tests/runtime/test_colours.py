"""The two colours are one: stripped of `async` and `await`, the drivers are the same, but for what is named here."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import pytest

from durable._runtime.async_runs import AsyncRun
from durable._runtime.async_steps import AsyncDriver
from durable._runtime.runs import BlockingRun
from durable._runtime.steps import BlockingDriver
from durable.stores._adapters.async_snapshots import _AsyncVerbs
from durable.stores._adapters.snapshots import SnapshotAdapter
from durable.stores._work import await_work, perform_work

# The leaves, where blocking and awaiting really differ: how a body is called, how an answer, a change or a clock is
# waited for, and what guards the engine.
LEAVES = {
    (BlockingDriver, AsyncDriver): {
        "_begin_child",
        "_called",
        "_on_late_child",
        "call_child",
        "wait_for_children",  # what is late, and who rests
        "__init__",
        "call_decorated",
        "drain",
        "await_checkpoints",
        "_await_checkpoints",
        "check_awaited",
        "_close_unawaited",
        "map",
        "call",
        "_drawing",
        "_wait_for_room",
        "_await_cancellable",
        "_is_to_be_cancelled",
        "_attempt",
        "_checkpoint",
        "_on_late_reply",
        "_transact",
        "_commit",
        "_on_late_commit",
        "_join",
        "_abandon",
        "_advance",
        "_report_change",
        "_wait_for_change",
        "_is_cancelled",
        "_outer_exception",
        "_wait_until",
        "_next_rest",
        "is_alone",
        "_continue",
        "_race",
        "_on_branch_end",
        "_call_off",
        "_pause",
        "_take_turn",
    },
    (BlockingRun, AsyncRun): {
        "__init__",
        "_begin",
        "_continue",
        "_finish",
        "_give_back",
        "_give_back_late",
        "_migrate",
    },
    (SnapshotAdapter, _AsyncVerbs): {"__init__", "close", "_release", "_under_lock", "_save", "_called"},
}

_SAME_BUT_FOR_COLOUR = {
    "AsyncStep": "Step",
    "asleep": "sleep",
    "submit": "perform",
    "await_work": "perform_work",
    "current_task": "current_thread",
    "asyncio": "threading",
}


class _Stripper(ast.NodeTransformer):
    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        fields: Any = {field: getattr(node, field, None) for field in ast.FunctionDef._fields}
        plain = ast.FunctionDef(**fields)
        return self.generic_visit(ast.copy_location(plain, node))

    def visit_AsyncWith(self, node: ast.AsyncWith) -> Any:
        return self.generic_visit(ast.copy_location(ast.With(node.items, node.body), node))

    def visit_Expr(self, node: ast.Expr) -> Any:
        is_docstring = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Expr(ast.Constant("")) if is_docstring else self.generic_visit(node)

    def visit_Await(self, node: ast.Await) -> Any:
        return self.visit(node.value)

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        self.generic_visit(node)
        if node.attr == "aio":
            return node.value
        node.attr = _SAME_BUT_FOR_COLOUR.get(node.attr, node.attr)
        return node

    def visit_Name(self, node: ast.Name) -> Any:
        node.id = _SAME_BUT_FOR_COLOUR.get(node.id, node.id)
        return node


def _stripped(method: Any) -> str:
    return ast.unparse(_Stripper().visit(ast.parse(textwrap.dedent(inspect.getsource(method)))))


# So many lines of each pair are compared today, with the colour stripped. It may only rise: what is named a leaf is compared no more.
COMPARED = {
    # Fewer than before: how a call ends, and what a sleep waits for, `driver` says for both.
    (BlockingDriver, AsyncDriver): 42,
    (BlockingRun, AsyncRun): 83,  # one fewer than before: a grant is an argument
    (SnapshotAdapter, _AsyncVerbs): 43,
}


@pytest.mark.parametrize(("blocking", "awaiting"), LEAVES, ids=["step", "run", "whole snapshots"])
def test_both_drivers_are_the_same_code(blocking: type, awaiting: type) -> None:
    """Whoever mends one colour mends the other."""
    leaves = LEAVES[blocking, awaiting]
    methods = {
        name for class_ in (blocking, awaiting) for name, value in vars(class_).items() if inspect.isfunction(value)
    }
    compared = methods - leaves
    assert compared
    lines = 0
    for name in compared:
        stripped = _stripped(getattr(blocking, name))
        assert stripped == _stripped(getattr(awaiting, name)), name
        lines += len(stripped.splitlines())
    assert leaves <= methods, "a leaf that is no more"
    before = COMPARED[blocking, awaiting]
    print(f"{blocking.__name__} and {awaiting.__name__}: {lines} lines compared, {before} at least")
    assert lines >= before, f"{before - lines} lines are compared no more: mend that, or say here why there are fewer"


def test_work_is_done_alike() -> None:
    """Of whichever store: what stood in each of four classes before."""
    told = [_stripped(way).partition("\n")[2] for way in (perform_work, await_work)]
    assert told[0] == told[1]
    assert len(told[0].splitlines()) >= 12
