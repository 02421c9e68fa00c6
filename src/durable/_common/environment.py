"""What the system and the installation must be like for durable to work; checked when this is imported."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from durable.errors import DurableWarning

_OURS: Final = "durable-postgres"
_PACKAGE: Final = "durable"


def _check_system() -> None:
    """Raise `ImportError` on a system that is not POSIX."""
    try:  # the first for locks that end with their process, the second for the account of an embedded server
        for module in ("fcntl", "pwd"):
            __import__(module)
    except ImportError as problem:
        raise ImportError(
            f"durable needs a POSIX system, like Linux or macOS, and this Python has no module {problem.name!r}. "
            f"On Windows, run it in WSL or in a container."
        ) from None


def _check_installation() -> None:
    """Warn where another distribution owns a package of our name, and raise `ImportError` where it has replaced our file."""
    here, doc = Path(__file__).parent.parent, sys.modules[_PACKAGE].__doc__
    replaced = doc is None or not doc.startswith("Durable workflows")
    places = [here.parent] if replaced or _has_more_than_its_own(here) else []
    for owner in _owners([*places, *_others(here)]):
        advice = (
            f"Two distributions cannot share it: install them in two environments, or `pip uninstall {owner}` and then "
            f"`pip install --force-reinstall {_OURS}`."
        )
        if replaced:
            raise ImportError(
                f"the package `{_PACKAGE}` of {_OURS} was overwritten by that of the distribution {owner}. {advice}"
            )
        warnings.warn(
            f"the distribution {owner} has a package `{_PACKAGE}` too, and only one of the two can be imported. {advice}",
            DurableWarning,
            stacklevel=4,
        )
    if replaced:
        raise ImportError(f"{here / '__init__.py'} is not that of {_OURS}: `pip install --force-reinstall {_OURS}`")


def _has_more_than_its_own(here: Path) -> bool:
    """Whether the directory holds what our distribution did not install there."""
    record = next(here.parent.glob(f"{_OURS.replace('-', '_')}-*.dist-info/RECORD"), None)
    if record is None:  # an editable installation
        return False
    lines = record.read_text("utf-8").splitlines()
    own = {line.split("/")[1].partition(",")[0] for line in lines if line.startswith(f"{_PACKAGE}/")}
    return any(entry.name not in own and entry.name != "__pycache__" for entry in here.iterdir())


def _others(here: Path) -> Iterator[Path]:
    """Other directories on the path that have a package of this name."""
    for entry in dict.fromkeys(sys.path):
        directory = Path(entry)
        package = directory / _PACKAGE
        if (package / "__init__.py").is_file() and not package.samefile(here):
            yield directory


def _owners(places: list[Path]) -> list[str]:
    """The other distributions that have installed a package of this name there."""
    if not places:
        return []
    from importlib import metadata  # noqa: PLC0415 -- slow to import, and almost never needed

    return sorted(
        {
            one.name
            for one in metadata.distributions(path=[str(place) for place in places])
            if one.name != _OURS and any(file.parts[0] == _PACKAGE for file in one.files or ())
        }
    )


_check_system()
_check_installation()
