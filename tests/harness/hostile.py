"""Text that means harm to whatever shows it, and a run that has it in every place where text is stored."""

from __future__ import annotations

from typing import Any

import pytest

import durable

CORPUS = {
    "script": "<script>document.title='owned'</script>",
    "attribute": "\" autofocus onfocus=\"document.title='owned'",
    "single quotes": "' onmouseover='document.title=1",
    "svg": "<svg onload=document.title='owned'>",
    "end of everything": "</a></td></pre></textarea></title>--><!--]]>",
    "template": "{{ 7*7 }}{% raw %}${7*7}#{7*7}",
    "link": "javascript:document.title='owned'",
    "entities": "&lt;b&gt;&amp;#x3c;&quot",
    "ansi": "\x1b[2J\x1b]0;owned\x07red\x1b[31m",
    "bidi": "safe\u202etxt.exe\u2066\u2069\u200f",
    "no width": "a\u200bb\ufeffc\u2028d",
    "slashes": "../../etc/passwd/%2e%2e/?a=b&c=d#e",
    "zalgo": "Z" + "\u0310\u0352\u0347" * 40,
    "long": "w" * 300,
    "wide": "𒐫﷽" * 20,
    "right to left": "שלום עולם",
    "lines": "first\nsecond\tthird\r\nfourth",
    "plus and percent": "a+b%20c%zz",
}


def play_hostile(store: Any, bad: str, run_id: str) -> None:
    def fail() -> None:
        raise ValueError(bad)

    def workflow(step: durable.Step, _: None, given: Any) -> None:
        step(bad, lambda: {bad: [bad, given]})
        step("fail " + bad, fail)

    with pytest.raises(ValueError) as raised:
        durable.run(
            None, durable.workflow(name=bad)(workflow), id=run_id, input=bad, store=store, metadata={"tenant": bad}
        )
    assert raised.type is ValueError
    durable.signal(store, run_id, "s", bad)
