"""A child of a run: how a step starts it, and what the workflow holds of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Generic, TypedDict, TypeVar, cast

from msgspec import structs

from durable._common.checks import check_name
from durable._common.durations import Duration
from durable._engine.step_kinds import AwaitChild, StartChild
from durable._runtime.bodies import Body
from durable._runtime.driver import Driver
from durable._runtime.new_runs import Start, define_started, new_run
from durable._runtime.plan import MISSING
from durable._runtime.step_options import DEFAULTS
from durable.codecs import return_annotation
from durable.errors import InvalidArgument

T = TypeVar("T")


class ChildOptions(TypedDict, total=False):
    """The options of a child to a type checker; what each means is said at `Step.call`."""

    queue: str | None
    priority: int
    at: datetime | None
    delay: Duration | None
    deadline: Duration | datetime | None
    metadata: Mapping[str, Any] | None
    partition: str | None


class ChildHandle(Generic[T]):
    """A child that `step.start` has started, for `step.wait_all` in the same execution of the parent."""

    __slots__ = ("_driver", "begin", "id", "key", "name", "wait")

    def __init__(self, driver: Driver, id: str, key: str, name: str) -> None:
        #: The id of the child's run: `durable.handle(store, child.id)` asks it anything, from anywhere.
        self.id = id
        #: The key of the step.
        self.key = key
        #: The step's name, which is the workflow's.
        self.name = name
        self._driver = driver
        #: The step's body where it starts the child, and where it waits for it.
        self.begin = self.wait = Body(self.itself, (), {}, DEFAULTS)

    def __repr__(self) -> str:
        return f"<child {self.id!r}>"

    def itself(self, *_: Any) -> ChildHandle[T]:
        return self

    def is_of(self, driver: Driver) -> bool:
        """Whether it was started in this very execution."""
        return self._driver is driver


def plan_child(
    driver: Driver, fn: Callable[..., Any] | str, key: str, start: Start, queue: str | None
) -> ChildHandle[Any]:
    """The child that the step of this key starts, with its two bodies; `InvalidArgument`, `UnstorableValue`."""
    definition = define_started(fn)
    of = None if isinstance(fn, str) else fn
    scope = driver.scope
    child_id, parent = driver.name_child(check_name("a step's key", scope + check_name("a step's key", key)))
    into = definition.queue if queue is None else check_name("a queue's name", queue)
    child = new_run(
        structs.replace(start, id=child_id), definition, of, into, driver.codec, driver.clock, parent=parent
    )
    args = () if start.input is MISSING else (start.input,)
    handle = ChildHandle[Any](driver, child_id, key, definition.name)
    annotation = None if of is None else return_annotation(of)
    handle.begin = Body(handle.itself, args, {}, DEFAULTS, annotation, StartChild(child), scope=scope)
    handle.wait = Body(handle.itself, args, {}, DEFAULTS, annotation, AwaitChild(child), scope=scope)
    return handle


def check_handles(driver: Driver, given: object) -> list[ChildHandle[Any]]:
    """The handles that `step.wait_all` was given."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidArgument(f"step.wait_all takes a list of what step.start returns, not {type(given).__name__}")
    handles = list(cast("Iterable[object]", given))
    for handle in handles:
        if not isinstance(handle, ChildHandle):
            raise InvalidArgument(f"step.wait_all takes what step.start returns, not {type(handle).__name__}")
        if not handle.is_of(driver):
            raise InvalidArgument(
                f"step.wait_all: the child {handle.id!r} was started by another execution or another run; call step.start "
                f"where the workflow waits: a child that is there is joined"
            )
    return cast("list[ChildHandle[Any]]", handles)
