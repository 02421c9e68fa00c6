"""Types of well-known libraries that are stored as something plainer: by package, when the first value of one is met.

No library is imported for this: where there is a value of its type, or a record names an imported one, it is there.
"""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from durable.codecs._shapes import Conversion, Shape, recipes

_Pairs = list[list[Any]]


def _psycopg(class_: Any) -> Shape | None:
    kinds = {base.__qualname__ for base in class_.__mro__ if base.__module__.startswith("psycopg.types.")}
    if "Range" in kinds:
        return Conversion(
            lambda it: None if it.isempty else [it.lower, it.upper, it.bounds],
            lambda plain: class_(empty=True) if plain is None else class_(*plain),
        )
    return Conversion(list, class_) if "Multirange" in kinds else None


_NUMPY_SCALARS: Final = frozenset(
    {"bool", "bool_", "str_", "bytes_", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def _numpy(class_: Any) -> Shape | None:
    if class_.__module__ != "numpy":
        return None
    if class_.__qualname__ in _NUMPY_SCALARS:
        return Conversion(lambda it: it.item(), class_)
    array: Any = sys.modules["numpy"].array
    if class_.__qualname__ == "datetime64":
        return Conversion(lambda it: [str(it), it.dtype.name], lambda plain: array(plain[0], plain[1])[()])
    if class_.__qualname__ == "timedelta64":
        return Conversion(
            lambda it: [int(it.astype("int64")), it.dtype.name], lambda plain: array(plain[0], plain[1])[()]
        )
    return None


def _msgspec(class_: Any) -> Shape | None:
    return Conversion(lambda _: None, lambda _: msgspec.UNSET) if class_ is msgspec.UnsetType else None


def _pandas(class_: Any) -> Shape | None:
    pandas: Any = sys.modules["pandas"]
    if class_ is pandas.Timestamp:
        return Conversion(
            lambda it: {"at": it.to_pydatetime(warn=False), "nanosecond": it.nanosecond, "unit": it.unit},
            lambda plain: _finer(class_(plain["at"]).as_unit(plain["unit"]), plain["nanosecond"]),
        )
    if class_ is pandas.Timedelta:
        return Conversion(
            lambda it: {"count": int(it.asm8.astype("int64")), "unit": it.unit},
            lambda plain: class_(sys.modules["numpy"].timedelta64(plain["count"], plain["unit"])),
        )
    missing = next((one for one in (pandas.NaT, pandas.NA) if class_ is type(one)), None)
    return None if missing is None else Conversion(lambda _: None, lambda _: missing)


def _finer(moment: Any, nanosecond: int) -> Any:
    return moment.replace(nanosecond=nanosecond) if nanosecond else moment  # which would change the unit


def _httpx(class_: Any) -> Shape | None:
    if class_.__qualname__ == "URL":
        return Conversion(str, class_)
    if class_.__qualname__ == "QueryParams":
        return Conversion(
            lambda it: [list(pair) for pair in it.multi_items()], lambda plain: class_(list(map(tuple, plain)))
        )
    if class_.__qualname__ == "Headers":
        return Conversion(
            lambda it: {"items": _latin(it.raw), "encoding": it.encoding},
            lambda plain: class_(
                [(name.encode("latin-1"), value.encode("latin-1")) for name, value in plain["items"]],
                encoding=plain["encoding"],
            ),
        )
    return None


def _latin(raw: list[tuple[bytes, bytes]]) -> _Pairs:
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in raw]  # a character for each byte


def _requests(class_: Any) -> Shape | None:
    if class_.__qualname__ == "CaseInsensitiveDict":
        return Conversion(lambda it: [list(pair) for pair in it.items()], class_)
    return None


def _pydantic(class_: Any) -> Shape | None:
    kinds = {base.__qualname__ for base in class_.__mro__ if base.__module__ in _PYDANTIC_URLS}
    return Conversion(str, class_) if kinds & {"_BaseUrl", "_BaseMultiHostUrl", "Url", "MultiHostUrl"} else None


_PYDANTIC_URLS: Final = ("pydantic.networks", "pydantic_core._pydantic_core")


def _sqlalchemy(class_: Any) -> Shape | None:
    if class_.__module__ != "sqlalchemy.engine.row":
        return None
    if class_.__qualname__ == "Row":
        return Conversion(lambda row: _by_name(zip(row._fields, row, strict=True)), _row)
    if class_.__qualname__ == "RowMapping":
        return Conversion(lambda it: _by_name(it.items()), lambda plain: _row(plain)._mapping)  # noqa: SLF001 -- its public name
    return None


def _by_name(pairs: Any) -> dict[str, Any] | _Pairs:
    """A dict, which queries can look into; pairs, where a name comes twice."""
    named: _Pairs = [[str(name), value] for name, value in pairs]
    by_name = {name: value for name, value in named}  # noqa: C416 -- of lists, which dict() is not typed for
    return by_name if len(by_name) == len(named) else named


def _row(plain: dict[str, Any] | _Pairs) -> Any:
    """A row with these names and values, no longer tied to its columns, as one from a pickle or a cached result."""
    named: Iterable[Iterable[Any]] = plain.items() if isinstance(plain, dict) else plain
    names, values = zip(*named, strict=True) if plain else ((), ())
    row_of: Callable[[Any], Any] = sys.modules["sqlalchemy.engine"].result_tuple
    return row_of(names)(values)


recipes.update(
    httpx=_httpx,
    msgspec=_msgspec,
    numpy=_numpy,
    pandas=_pandas,
    psycopg=_psycopg,
    pydantic=_pydantic,
    pydantic_core=_pydantic,
    requests=_requests,
    sqlalchemy=_sqlalchemy,
)
