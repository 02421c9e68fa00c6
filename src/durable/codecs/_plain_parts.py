"""A value that was sent as plain JSON, as what an annotation says."""

from __future__ import annotations

from typing import Any

import msgspec

from durable.codecs._annotations import find_mismatch


def as_annotated(value: Any, annotation: Any) -> Any:
    """The value itself where it is what the annotation says; else what its plain parts make of that.

    So a dict with the fields of a data class, as other languages send it, becomes one. Raises `ValueError`, whose text says
    where and why, and quotes no value.
    """
    mismatch = find_mismatch(value, annotation)
    if mismatch is None:
        return value
    validate = getattr(annotation, "model_validate", None)  # pydantic's, whose own words would quote the value
    try:
        if validate is not None and isinstance(annotation, type):
            return validate(value)
        return msgspec.convert(value, annotation)
    except msgspec.ValidationError as problem:
        raise ValueError(str(problem)) from None
    except Exception:  # of the user's class, or a type that cannot be made of plain parts
        path, why = mismatch
        raise ValueError(f"at {path}: {why}") from None
