"""The tag of a value that JSON alone would not bring back."""

from __future__ import annotations

import re
from typing import Any, Final

TAG: Final = "$type"  # an object with this key is a tagged value; a dict that has it is written as pairs
TAG_IN_TEXT: Final = b'"$type"'
CODEC_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}", re.ASCII)


def missing_codec(name: Any) -> str:
    """What is wrong with a record whose codec the store does not have."""
    shown = f" {name!r}" if isinstance(name, str) and CODEC_NAME.fullmatch(name) else ""
    return f"the codec{shown} wrote it, and the store has none of that name: pass it to the store with codec="
