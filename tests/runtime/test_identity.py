"""Which runs are whose: a workflow is known by its function, or by the name that it was given."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib
import json
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import durable
from durable.stores import memory
from durable.testing import replay
from harness.support import Database

Make = Callable[[], Any]


@pytest.fixture
def store() -> Iterator[Any]:
    with memory() as store:
        yield store


def module(name: str, text: str) -> Any:
    """A module of this name and text, imported."""
    made = types.ModuleType(name)
    sys.modules[name] = made
    exec(compile(textwrap.dedent(text), f"/nowhere/{name}.py", "exec"), made.__dict__)
    return made


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    """Modules that a test has made are forgotten after it."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("identity_"):
            del sys.modules[name]


def checkout(step: durable.Step, deps: Any) -> str:
    """The workflow of this module."""
    return step("pay", lambda: "paid here")


ELSEWHERE = "def checkout(step, deps): return step('pay', lambda: 'paid elsewhere')"


class Shop:
    """Workflows that are methods."""

    def checkout(self, step: durable.Step, deps: Any) -> str:
        return step("pay", lambda: "paid by a shop")

    @staticmethod
    def refund(step: durable.Step, deps: Any) -> str:
        return step("pay", lambda: "refunded")


class Called:
    """A workflow that is an object."""

    def __call__(self, step: durable.Step, deps: Any) -> str:
        return step("pay", lambda: "paid by an object")


def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator."""

    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return fn(*args)

    return wrapper


def _method() -> Any:
    other = module(
        "identity_shop", "class Shop:\n  def checkout(self, step, deps): return step('pay', lambda: 'other')"
    )
    return other.Shop().checkout


def _object() -> Any:
    return module("identity_called", "class Called:\n  def __call__(self, step, deps): return 'other'").Called()


def _refund() -> Any:
    other = module("identity_refund", "def refund(step, deps): return 'other'")
    return other.refund


OTHERS: dict[str, tuple[Make, Make]] = {
    "a function": (lambda: checkout, lambda: module("identity_other", ELSEWHERE).checkout),
    "a method": (lambda: Shop().checkout, lambda: checkout),
    "methods of two classes": (lambda: Shop().checkout, _method),
    "a static method": (lambda: Shop.refund, _refund),
    "an object": (Called, _object),
    "a partial": (
        lambda: functools.partial(checkout),
        lambda: functools.partial(module("identity_part", ELSEWHERE).checkout),
    ),
    "a decorated function": (lambda: logged(checkout), lambda: logged(module("identity_deco", ELSEWHERE).checkout)),
    "a lambda": (lambda: lambda step, deps: 1, lambda: module("identity_la", "wf = lambda step, deps: 2").wf),
    "a local function": (lambda: local_one(), lambda: local_two()),
}


def local_one() -> Any:
    def inner(step: durable.Step, deps: Any) -> int:
        return 1

    return inner


def local_two() -> Any:
    def inner(step: durable.Step, deps: Any) -> int:
        return 2

    return inner


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("ending", ["completed", "failed", "interrupted"])
def test_another_function_of_the_same_name_is_another_workflow(store: Any, kind: str, ending: str) -> None:
    """Whatever has become of the run; it is left as it is, and the error says what to do if the function has moved."""
    one, other = OTHERS[kind]
    first, broken = one(), [ending != "completed"]

    class Left(BaseException): ...

    @functools.wraps(first.func if isinstance(first, functools.partial) else first)
    def begun(*args: Any) -> Any:
        if broken[0]:
            raise ValueError if ending == "failed" else Left
        return first(*args)

    if isinstance(first, Called):
        begun = first  # type: ignore[assignment]
        broken[0] = False
    try:
        value = durable.run({}, begun, id="r", store=store)
    except (ValueError, Left):
        value = None
    before = store.load("r")
    with pytest.raises(durable.RunMismatch, match=r"@durable\.workflow\(name='") as told:
        durable.run({}, other(), id="r", store=store)
    assert told.value.what == "function"
    assert store.load("r") == before
    broken[0] = False
    assert durable.run({}, begun, id="r", store=store) == (value or first(_Direct(), {}))


class _Direct:
    """Steps that are calls."""

    def __call__(self, name: str, fn: Any, *args: Any) -> Any:
        return fn(*args)


def test_a_function_stays_itself(store: Any) -> None:
    """Called through a partial, decorated, defined anew, of another instance, renamed by hand: the same function."""
    local = local_one()
    kinds: tuple[tuple[Any, ...], ...] = (
        ("f", checkout, functools.partial(checkout), logged(checkout), logged(logged(checkout))),
        ("m", Shop().checkout, Shop().checkout, functools.partial(Shop().checkout), logged(Shop().checkout)),
        ("o", Called(), Called(), functools.partial(Called())),
        ("l", local, local_one(), logged(local_one())),
    )
    for run_id, first, *again in kinds:
        value = durable.run({}, first, id=run_id, store=store)
        assert [durable.run({}, fn, id=run_id, store=store) for fn in again] == [value] * len(again)


def test_a_reloaded_module_goes_on(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code may have changed; the workflow has not."""
    (tmp_path / "identity_reloaded.py").write_text("def checkout(step, deps): raise ValueError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    shop = importlib.import_module("identity_reloaded")
    with pytest.raises(ValueError):
        durable.run({}, shop.checkout, id="r", store=store)
    (tmp_path / "identity_reloaded.py").write_text("def checkout(step, deps): return step('pay', lambda: 'mended')")
    assert durable.run({}, importlib.reload(shop).checkout, id="r", store=store) == "mended"


def test_a_given_name_is_all_that_counts(store: Any) -> None:
    """Wherever the function stands, whatever it is called, and whether the run began before it was given the name."""

    @durable.workflow(name="checkout")
    def purchase(step: durable.Step, deps: Any) -> str:
        raise AssertionError("the run was completed")

    value = durable.run({}, checkout, id="r", store=store)
    assert durable.run({}, purchase, id="r", store=store) == value
    assert durable.run({}, durable.workflow("checkout")(Called()), id="r", store=store) == value

    durable.run({}, durable.workflow(name="pay")(local_one()), id="named", store=store)
    moved = module("identity_moved", "def anything(step, deps): return 'not again'").anything
    assert durable.run({}, durable.workflow(name="pay")(moved), id="named", store=store) == 1
    assert "workflowFunction" not in store.load("named").metadata
    with pytest.raises(durable.RunMismatch, match=r"'pay', not 'checkout'.*name='pay'"):
        durable.run({}, checkout, id="named", store=store)


def test_a_name_can_be_given_to_whatever_can_be_called(store: Any) -> None:
    """Functions of both colours, methods of each kind, partials, objects and their classes; each stays what it was."""

    async def soon(step: durable.AsyncStep, deps: Any) -> str:
        return await step("s", lambda: "soon")

    class Shop:
        @durable.workflow(name="method")
        def method(self, step: durable.Step, deps: Any) -> str:
            return "method"

        @durable.workflow(name="static")
        @staticmethod
        def static(step: durable.Step, deps: Any) -> str:
            return "static"

        @classmethod
        @durable.workflow(name="class")
        def of_class(cls, step: durable.Step, deps: Any) -> str:
            return "class"

        @durable.workflow(name="class 2")
        @classmethod
        def of_class_too(cls, step: durable.Step, deps: Any) -> str:
            return "class 2"

    @durable.workflow(name="object")
    @dataclasses.dataclass(frozen=True)
    class Frozen:
        def __call__(self, step: durable.Step, deps: Any) -> str:
            return "object"

    class Overriding(Frozen):
        def __call__(self, step: durable.Step, deps: Any) -> str:
            return "overridden"

    class Inheriting(Frozen): ...

    class Inside:
        @durable.workflow(name="inside")
        def __call__(self, step: durable.Step, deps: Any) -> str:
            return "inside"

    named = durable.workflow(name="async")(soon)
    assert named is soon
    assert asyncio.run(durable.run({}, soon, id="a", store=store)) == "soon"
    assert store.load("a").workflow_name == "async"
    with_part = durable.workflow(name="part")(functools.partial(checkout))
    for fn, name in (
        (Shop().method, "method"),
        (Shop.static, "static"),
        (Shop().of_class, "class"),
        (Shop.of_class_too, "class 2"),
        (Frozen(), "object"),
        (Inheriting(), "object"),
        (Inside(), "inside"),
        (Overriding(), "Overriding"),
        (with_part, "part"),
        (functools.partial(with_part), "part"),
        (checkout, "checkout"),
        (logged(Shop().method), "method"),
        (durable.workflow(local_one()), "inner"),
        (durable.workflow(logged(durable.workflow(name="kept")(local_one()))), "kept"),
    ):
        durable.run({}, fn, id=f"run {name}", store=store)
        assert store.load(f"run {name}").workflow_name == name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (7, "takes a function or a name"),
        ("", "must not be empty"),
        ("a\0b", "NUL"),
        ("n" * 513, "bytes"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(given: Any, said: str) -> None:
    """Where it is given, not when the workflow is run."""
    with pytest.raises(durable.InvalidArgument, match=said):
        durable.workflow(given)


def test_what_cannot_be_marked_is_refused() -> None:
    """A bound method, a builtin, an object with slots, what cannot be called: each with what to do instead."""

    class Slots:
        __slots__ = ()

        def __call__(self, step: durable.Step, deps: Any) -> None: ...

    for fn in (Shop().checkout, print, Slots(), int):
        with pytest.raises(durable.InvalidArgument, match=r"cannot mark this .*functools\.partial"):
            durable.workflow(name="x")(fn)
    with pytest.raises(durable.InvalidArgument, match="not property"):
        durable.workflow(name="x")(property(lambda _: 1))  # type: ignore[type-var]
    assert durable.workflow(name="x")(functools.partial(Shop().checkout)) is not None


def test_runs_without_a_function_go_on(store: Any) -> None:
    """What another tool wrote, what an explicit name wrote, and what was saved by hand."""
    foreign = {"formatVersion": 1, "steps": {}, "execution": {"status": "running"}, "metadata": {"version": 1}}
    named = {**foreign, "workflowName": "checkout"}
    for document in (foreign, named):
        store.save("r", durable.Snapshot.from_document(document))
        assert durable.run({}, checkout, id="r", store=store) == "paid here"
        store.delete("r")
    store.save("r", durable.Snapshot.from_document(foreign))
    durable.run({}, checkout, id="r", store=store)
    assert store.load("r").metadata["workflowFunction"] == f"{__name__}:checkout"
    with pytest.raises(durable.RunMismatch):
        durable.run({}, module("identity_f", ELSEWHERE).checkout, id="r", store=store)


def test_a_name_that_was_set_by_hand_was_given(store: Any) -> None:
    """A function whose `__name__` is not its own goes by that name; so does an object that has one."""
    durable.run({}, checkout, id="r", store=store)
    other, called = module("identity_hand", ELSEWHERE.replace("checkout", "buy")).buy, Called()
    other.__name__ = called.__name__ = "checkout"  # type: ignore[attr-defined]
    assert durable.run({}, other, id="r", store=store) == "paid here"
    assert durable.run({}, called, id="r", store=store) == "paid here"


def test_the_key_in_the_metadata_is_the_librarys(store: Any) -> None:
    """A user's key of this name would be taken for it."""
    with pytest.raises(durable.InvalidArgument, match="workflowFunction"):
        durable.run({}, checkout, id="r", store=store, metadata={"workflowFunction": "mine"})


def test_another_version_does_not_make_it_the_same_function(store: Any) -> None:
    """`on_version_mismatch` is asked about versions of a workflow, not about another workflow."""
    durable.run({}, checkout, id="r", store=store)
    other = module("identity_v", ELSEWHERE).checkout
    with pytest.raises(durable.RunMismatch):
        durable.run({}, other, id="r", store=store, version=2, on_version_mismatch="clear")
    named = durable.workflow(name="checkout")(other)
    assert durable.run({}, named, id="r", store=store, version=2, on_version_mismatch="clear") == "paid elsewhere"
    assert store.load("r").metadata["workflowFunction"] == f"{__name__}:checkout"


def test_a_workflow_that_keeps_its_own_state_has_a_name() -> None:
    """`Workflow(name, …)` names whatever it is given, so its states go from function to function."""
    collector = durable.ResumeStateCollector()
    workflow = durable.Workflow("checkout", None, on_event=collector.handle_event)
    assert workflow.run(checkout) == "paid here"
    assert workflow.run(module("identity_w", ELSEWHERE).checkout, resume_state=collector.resume_state()) == "paid here"

    async def soon(step: durable.AsyncStep, deps: Any) -> str:
        return await step("pay", lambda: "paid anew")

    assert asyncio.run(_awaited(workflow.run(soon, resume_state=collector.resume_state()))) == "paid here"


async def _awaited(value: Any) -> Any:
    return await value


def test_replays_know_the_function_too(store: Any) -> None:
    """A history is not that of another function of the name."""
    durable.run({}, checkout, id="r", store=store)
    assert replay({}, checkout, store.load("r")).drift is None
    drift = replay({}, module("identity_r", ELSEWHERE).checkout, store.load("r")).drift
    assert isinstance(drift, durable.RunMismatch)


def test_postgres_refuses_before_it_grants(database: Database) -> None:
    """The store decides as the model does: the run is left as it ended, and no lease is taken."""
    with database.store() as store:

        def checkout(step: durable.Step, deps: Any) -> Any:
            return step("pay", lambda: 1 / 0)

        with pytest.raises(ZeroDivisionError):
            durable.run({}, logged(checkout), id="r", store=store)
        before = database.everything()
        with pytest.raises(durable.RunMismatch, match="function"):
            durable.run({}, module("identity_pg", ELSEWHERE).checkout, id="r", store=store)
        assert database.everything() == before
        assert database.execute("SELECT snapshot->'metadata'->>'workflowFunction' FROM durable_snapshots") == [
            (f"{__name__}:{checkout.__qualname__}",)
        ]
        named = durable.workflow(name="checkout")(module("identity_pg2", ELSEWHERE).checkout)
        assert durable.run({}, named, id="r", store=store) == "paid elsewhere"


SHOP = """
import json, sys, warnings
import durable
from durable.testing import replay
warnings.simplefilter("ignore")

class Workflows:
    def buy(self, step, deps): return step("pay", lambda: 1)

class Called:
    def __call__(self, step, deps): return step("pay", lambda: 1)

def checkout(step, deps): return step("pay", lambda: 1)

def report(out):
    from durable._runtime.workflow import definition_of_workflow
    fns = [checkout, Workflows().buy, Called(), lambda step, deps: 1]
    out.append([definition_of_workflow(fn).function for fn in fns])

def child(out):
    lines = []
    report(lines)
    out.put(lines)

if __name__ == "__main__":
    out = []
    report(out)
    if "spawn" in sys.argv:
        import multiprocessing
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        out += queue.get()
        process.join()
    print(json.dumps(out))
"""


@pytest.mark.parametrize(
    ("folder", "arguments", "imported"),
    [
        ("", ["shop.py"], "shop"),
        ("", ["-m", "shop"], "shop"),
        ("", ["shop.py", "spawn"], "shop"),
        ("", ["-m", "shop", "spawn"], "shop"),
        ("", ["-m", "cProfile", "-o", os.devnull, "shop.py"], "shop"),
        ("", ["-c", "import runpy; runpy.run_path('shop.py', run_name='__main__')"], "shop"),
        ("", ["-c", "import runpy; runpy.run_module('shop', run_name='__main__')"], "shop"),
        ("store/front", ["-m", "store.front.shop"], "store.front.shop"),
        ("store/front", ["store/front/shop.py"], "store.front.shop"),
        ("store/front", ["-m", "store.front.shop", "spawn"], "store.front.shop"),
    ],
)
def test_a_script_is_the_module_that_it_is_imported_as(
    tmp_path: Path, folder: str, arguments: list[str], imported: str
) -> None:
    """`python shop.py`, `python -m shop`, a child of either, and `import shop` have the same functions."""
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    for part in (place, *place.parents):
        if part == tmp_path:
            break
        (part / "__init__.py").touch()
    (place / "shop.py").write_text(SHOP)
    asked = f"import json, {imported} as shop; out = []; shop.report(out); print(json.dumps(out))"
    reports: list[list[str]] = []
    for command in (arguments, ["-c", asked]):
        process = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        reports += json.loads(process.stdout.splitlines()[-1])
    assert reports == [reports[-1]] * (3 if "spawn" in arguments else 2)
    assert reports[0][0] == f"{imported}:checkout"
