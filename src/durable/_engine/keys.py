"""The keys that one execution draws: of steps, scopes and values, each numbered among those of its name."""

from __future__ import annotations

from durable._engine.decisions import Abort, Raise
from durable._engine.drawn import Drawn
from durable._engine.scopes import SLASH
from durable.errors import AmbiguousKey, KeyConflict
from durable.records import Drawable


class Keys:
    """What has been drawn, and by which branch."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        # What each key was first drawn with: its name, its fingerprint, whether it came from the name, its scope. Not the call,
        # which would be kept for as long as the run goes on, with all that it has been through.
        self._asked: dict[str, tuple[str, str, bool, str]] = {}
        self._last_asked = ("", "", False, "")
        self._repeats: dict[str, int] = {}
        self._drawn_by: dict[str, object] = {}
        # Whether, in this history or now, calls overlapped or came from several branches.
        self._concurrent = False
        self._ambiguous: set[str] = set()
        #: What the workflow has drawn; None where that is nothing, as almost always.
        self.drawn: Drawn | None = None

    def draw_scope(self, outer: str, name: str, branch: object) -> str | Raise | Abort:
        """What keys begin with in the scope that `branch` enters within `outer`: numbered, as a thunk of this name would be."""
        first = f"{outer}{name}{SLASH}"
        repeat = self._repeats.get(first, 0) + 1
        if self._is_ambiguous(first, repeat, "", branch):
            return Abort(AmbiguousKey(self.run_id, first))
        self._repeats[first] = repeat
        scope = first if repeat == 1 else f"{outer}{name}#{repeat}{SLASH}"
        asked = (name, "", True, outer)
        if (earlier := self._asked.setdefault(scope, asked)) != asked:
            return Raise(KeyConflict(self.run_id, scope, f"the name {earlier[0]!r}, {tell_scope(earlier[3])}"))
        return scope

    def draw_value(
        self, kind: str, key: str | None, fresh: Drawable, branch: object, scope: str = ""
    ) -> Drawable | Abort:
        """The value that `step.kind()` gives in `branch`: `fresh`, where this execution and all before it have drawn none."""
        if key is None:
            method = f"{scope}step.{kind}()"  # numbered as a step of this name would be, whose arguments are unknown
            repeat = self._repeats.get(method, 0) + 1
            if self._is_ambiguous(method, repeat, "", branch):
                return Abort(AmbiguousKey(self.run_id, method))
            self._repeats[method] = repeat
            name = kind if repeat == 1 else f"{kind}#{repeat}"
        else:
            name = f"{kind}:{key}"
        if self.drawn is None:
            self.drawn = Drawn()
        return self.drawn.take(scope + name, fresh)

    def _is_ambiguous(self, name: str, repeat: int, fingerprint: str, branch: object, *, in_race: bool = False) -> bool:
        """Whether numbering this name could hand one call's value to another on replay."""
        if name in self._ambiguous or self._drawn_by.setdefault(name, branch) is not branch:
            return True
        # A branch that takes results in the order of their completion repeats a name in that order. With arguments
        # a swap would show as drift; a thunk shows nothing.
        return repeat > 1 and not fingerprint and (self._concurrent or in_race)


def tell_scope(scope: str) -> str:
    """Where a call was made."""
    return f"in the scope {scope.rstrip(SLASH)!r}" if scope else "outside of any scope"
