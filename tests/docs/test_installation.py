"""The installed package: what it says of itself, of the system, and of others that have its name."""

from __future__ import annotations

import email
import importlib.util
import os
import re
import shutil
import sys
import types
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from harness.programs import run_program

ROOT = Path(__file__).resolve().parents[2]


def told(program: str, *arguments: str, path: list[Path] | None = None, **environment: str) -> tuple[int, str, str]:
    """What a Python says, with these directories at the head of its path."""
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path or []))
    done = run_program(
        [sys.executable, *arguments, "-c", program],
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


# -- the system -------------------------------------------------------------------------------------------------------

HIDDEN: dict[str, str] = {
    "in sys.modules": "import sys; sys.modules[{name!r}] = None\n",
    "by a finder": (
        "import sys\n"
        "class Hides:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == {name!r}: raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)\n"
        "sys.meta_path.insert(0, Hides()); sys.modules.pop({name!r}, None)\n"
    ),
}


@pytest.mark.parametrize("how", HIDDEN)
@pytest.mark.parametrize("module", ["fcntl", "pwd"])
@pytest.mark.parametrize("statement", ["import durable", "from durable.stores import memory", "import durable.testing"])
def test_a_system_that_is_not_posix(how: str, module: str, statement: str) -> None:
    """Windows: one line that says what is missing, instead of a chain that ends in a module's name."""
    code, _, said = told(HIDDEN[how].format(name=module) + statement)
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith("ImportError: durable needs a POSIX system")
    assert repr(module) in last
    assert "WSL" in last
    assert "ModuleNotFoundError" not in said


# -- others of the same name ------------------------------------------------------------------------------------------


def install(site: Path, name: str, version: str, files: list[str]) -> None:
    """What pip leaves of a distribution whose files are there."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{info.name}/RECORD"]))


def install_ours(site: Path) -> None:
    shutil.copytree(ROOT / "src" / "durable", site / "durable", ignore=shutil.ignore_patterns("__pycache__"))
    files = [str(file.relative_to(site)) for file in (site / "durable").rglob("*") if file.is_file()]
    install(site, "durable-postgres", "0.1.0", files)


def install_other(site: Path, name: str = "durable_rules", version: str = "2.0.28") -> None:
    """As durable_rules is made: an empty `__init__.py` and two modules."""
    (site / "durable").mkdir(parents=True, exist_ok=True)
    for file in ("__init__.py", "lang.py", "engine.py"):
        (site / "durable" / file).write_text("")
    install(site, name, version, [f"durable/{file}" for file in ("__init__.py", "lang.py", "engine.py")])


USES = ["import durable; durable.run", "from durable.stores import memory; memory().close()"]


@pytest.mark.parametrize("use", USES)
def test_alone_nothing_is_said(tmp_path: Path, use: str) -> None:
    install_ours(tmp_path)
    assert told(use, "-W", "error", path=[tmp_path]) == (0, "", "")
    shown = f"import durable; assert durable.__file__.startswith({str(tmp_path)!r})"
    assert told(shown, path=[tmp_path]) == (0, "", "")


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", ["durable_rules", "another-thing"])
def test_another_that_lies_in_our_directory(tmp_path: Path, name: str, use: str) -> None:
    """Installed first, so that our file has replaced its own: ours works, and whoever uninstalls it should know."""
    install_other(tmp_path, name)
    (tmp_path / "durable" / "__init__.py").unlink()
    shutil.move(tmp_path / "durable", tmp_path / "theirs")
    install_ours(tmp_path)
    for file in (tmp_path / "theirs").iterdir():
        shutil.move(file, tmp_path / "durable")
    code, _, said = told(use, path=[tmp_path])
    assert code == 0
    assert f"DurableWarning: the distribution {name} has a package `durable` too" in said
    assert f"pip uninstall {name}" in said
    assert "<string>:1:" in said


@pytest.mark.parametrize("use", ["from durable.stores import memory", "import durable.demo", "import durable.testing"])
@pytest.mark.parametrize("name", ["durable_rules", "another-thing"])
def test_another_that_has_replaced_our_file(tmp_path: Path, name: str, use: str) -> None:
    """Installed later: `durable.run` is gone, and the first use of a part of ours says why."""
    install_ours(tmp_path)
    install_other(tmp_path, name)
    code, _, said = told(use, path=[tmp_path])
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith(
        f"ImportError: the package `durable` of durable-postgres was overwritten by that of the distribution {name}"
    )
    assert "pip install --force-reinstall durable-postgres" in last


def test_a_file_that_was_replaced_without_a_name(tmp_path: Path) -> None:
    install_ours(tmp_path)
    (tmp_path / "durable" / "__init__.py").write_text("")
    code, _, said = told("from durable.stores import memory", path=[tmp_path])
    assert code == 1
    assert "is not that of durable-postgres" in said


@pytest.mark.parametrize("use", USES)
def test_another_elsewhere_on_the_path(tmp_path: Path, use: str) -> None:
    """In the user's site-packages, for example: ours comes first, and theirs cannot be imported."""
    install_ours(tmp_path / "ours")
    install_other(tmp_path / "theirs")
    code, _, said = told(use, path=[tmp_path / "ours", tmp_path / "theirs"])
    assert code == 0
    assert "the distribution durable_rules has a package `durable` too" in said


def test_a_directory_that_nobody_installed_is_not_named(tmp_path: Path) -> None:
    """A folder of the user's that happens to have the name, later on the path."""
    install_ours(tmp_path / "ours")
    (tmp_path / "theirs" / "durable").mkdir(parents=True)
    (tmp_path / "theirs" / "durable" / "__init__.py").write_text("")
    path = [tmp_path / "ours", tmp_path / "theirs"]
    assert told(USES[0], "-W", "error", path=path) == (0, "", "")


# -- what is built ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a wheel that is built from this checkout."""
    place = tmp_path_factory.mktemp("wheel")
    run_program([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place], cwd=ROOT, check=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_every_file_of_the_product_and_no_other(built: dict[str, bytes]) -> None:
    """SQL, migrations, `py.typed` and what the page is made of with the modules; no test, and nothing of the simulation."""
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix(): path for path in source.rglob("*") if path.is_file()}
    ours = {name: path.read_bytes() for name, path in files.items() if "__pycache__" not in name}
    assert {name: data for name, data in built.items() if ".dist-info/" not in name} == ours
    kinds = {Path(name).suffix for name in ours}
    assert kinds == {".py", ".sql", ".typed", ".html", ".css", ".js", ".svg"}
    assert not [name for name in built if "simulation" in name]


def test_the_wheel_asks_for_nothing_that_only_tests_need(built: dict[str, bytes]) -> None:
    """The extras are what users can want."""
    (text,) = (data.decode() for name, data in built.items() if name.endswith(".dist-info/METADATA"))
    told = email.message_from_string(text)
    assert set(told.get_all("Provides-Extra", [])) == {"cli", "embedded", "encryption", "web"}
    assert "greenlet" not in " ".join(told.get_all("Requires-Dist", []))


# -- what PyPI shows --------------------------------------------------------------------------------------------------


def hook() -> Callable[..., Any]:
    """`hatch_build.shown`, without hatchling."""
    interface: Any = types.ModuleType("hatchling.metadata.plugin.interface")
    interface.MetadataHookInterface = object
    name = "hatchling.metadata.plugin.interface"
    missing = {
        part: types.ModuleType(part) for part in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin")
    }
    before = {part: sys.modules.get(part) for part in (*missing, name)}
    sys.modules.update(missing | {name: interface})
    try:
        spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for part, module_before in before.items():
            if module_before is None:
                del sys.modules[part]
            else:
                sys.modules[part] = module_before
    shown: Callable[..., Any] = module.shown
    return shown


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]*)\)", text)


def test_the_description_has_no_relative_links() -> None:
    """As the installed distribution tells it, which is what PyPI would show."""
    installed = metadata.metadata("durable-postgres")
    description = installed["Description"]
    assert "survive `kill -9`" in description
    assert [link for link in links(description) if not link.startswith("https://")] == []


def test_where_the_repository_has_an_address_the_links_lead_there() -> None:
    """And the project's URLs with them; nothing is invented where it has none."""
    shown, readme = hook(), (ROOT / "README.md").read_text("utf-8")
    elsewhere = [link for link in links(readme) if link.startswith("https://")]  # what other projects say of themselves
    assert len(elsewhere) < len(links(readme))
    text, urls = shown(readme, "https://example.org/durable/", "1.2.3")
    ours = [link for link in links(text) if link not in elsewhere]
    assert len(ours) == len(links(readme)) - len(elsewhere)
    assert all(re.match("https://example.org/durable/(blob|raw)/v1.2.3/", link) for link in ours)
    assert set(urls) == {"Repository", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith("https://example.org/durable") for url in urls.values())
    text, urls = shown(readme, "", "1.2.3")
    assert links(text) == elsewhere
    assert urls == {}
    text, _ = shown("[a](https://a.example/b) [b](#part) ![c](docs/c.svg) [d](d.md#e)", "https://e.org", "1")
    assert text == (
        "[a](https://a.example/b) [b](#part) ![c](https://e.org/raw/v1/docs/c.svg) [d](https://e.org/blob/v1/d.md#e)"
    )


def test_every_relative_link_of_the_readme_leads_somewhere() -> None:
    for link in links((ROOT / "README.md").read_text("utf-8")):
        if not link.startswith(("https://", "#")):
            assert (ROOT / link.partition("#")[0]).is_file(), link
