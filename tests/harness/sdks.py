"""What the most used SDKs return and raise: made from canned JSON, without a network, and given to a step.

`make sdks` installs them and writes the table in docs/values.md. `make test` does not collect this.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import durable
from durable.stores import memory

PAGE = Path(__file__).resolve().parents[2] / "docs" / "values.md"
BEGIN, END = "<!-- sdks: begin -->\n", "<!-- sdks: end -->\n"

COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": "hi"}}
    ],
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
CANDIDATES = {"candidates": [{"content": {"role": "model", "parts": [{"text": "hi"}]}}]}
CALL = {"name": "f", "args": {"a": 1}, "id": "1"}


REFUSED = "after the body"


def of(path: str) -> Any:
    """`module:name`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def request() -> Any:
    """A request that was never sent."""
    return of("httpx:Request")("POST", "http://x")


def response(status: int) -> Any:
    """The answer to it."""
    return of("httpx:Response")(status, request=request(), json={"error": {}})


def completion() -> Any:
    """As the client makes it."""
    made = of("openai.types.chat:ChatCompletion").construct(**COMPLETION)
    object.__setattr__(made, "_request_id", "req_1")
    return made


def row(*, mapping: bool = False) -> Any:
    """A row of a query."""
    sqlalchemy: Any = import_module("sqlalchemy")
    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        result = connection.execute(sqlalchemy.text("SELECT 1 AS id, 'a' AS name"))
        return result.mappings().one() if mapping else result.one()


KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "`ChatCompletion`": ("openai", completion),
    "`RateLimitError`": ("openai", lambda: of("openai:RateLimitError")("slow", response=response(429), body=None)),
    "`APIConnectionError`": ("openai", lambda: of("openai:APIConnectionError")(request=request())),
    "`Message`": ("anthropic", lambda: of("anthropic.types:Message").model_validate(MESSAGE)),
    "`RateLimitError` ": (
        "anthropic",
        lambda: of("anthropic:RateLimitError")("slow", response=response(429), body=None),
    ),
    "`Charge`": (
        "stripe",
        lambda: of("stripe:Charge").construct_from({"id": "ch_1", "object": "charge", "amount": 5}, "sk"),
    ),
    "`CardError`": ("stripe", lambda: of("stripe:CardError")("declined", "number", "card_declined")),
    "a response (a dict)": ("botocore", lambda: {"Items": [{"a": 1}], "ResponseMetadata": {"HTTPStatusCode": 200}}),
    "`StreamingBody`": ("botocore", lambda: of("botocore.response:StreamingBody")(io.BytesIO(b"x"), 1)),
    "`ClientError`": ("botocore", lambda: of("botocore.exceptions:ClientError")({"Error": {"Code": "X"}}, "Op")),
    "`Response`": ("httpx", lambda: response(200)),
    "`URL`": ("httpx", lambda: of("httpx:URL")("http://x/y")),
    "`Headers`": ("httpx", lambda: of("httpx:Headers")({"a": "b"})),
    "`HTTPStatusError`": (
        "httpx",
        lambda: of("httpx:HTTPStatusError")("500", request=request(), response=response(500)),
    ),
    "`ModelResponse`": (
        "pydantic-ai-slim",
        lambda: of("pydantic_ai.messages:ModelResponse")(parts=[of("pydantic_ai.messages:TextPart")("hi")]),
    ),
    "`AIMessage`": ("langchain-core", lambda: of("langchain_core.messages:AIMessage")("hi", tool_calls=[CALL])),
    "`ToolMessage`": ("langchain-core", lambda: of("langchain_core.messages:ToolMessage")("x", tool_call_id="1")),
    "`Document`": ("langchain-core", lambda: of("langchain_core.documents:Document")(page_content="x")),
    "`Row`": ("SQLAlchemy", row),
    "`RowMapping`": ("SQLAlchemy", lambda: row(mapping=True)),
    "`IntegrityError`": ("SQLAlchemy", lambda: of("sqlalchemy.exc:IntegrityError")("INSERT", {}, Exception("o"))),
    "`DataFrame`": ("pandas", lambda: of("pandas:DataFrame")({"a": [1]})),
    "`Timestamp`": ("pandas", lambda: of("pandas:Timestamp")("2030-01-01", tz="UTC")),
    "`ndarray`": ("numpy", lambda: of("numpy:array")([1.0])),
    "`float64`": ("numpy", lambda: of("numpy:float64")(1.5)),
    "`GenerateContentResponse`": (
        "google-genai",
        lambda: of("google.genai.types:GenerateContentResponse").model_validate(CANDIDATES),
    ),
}


def outcome(value: Any) -> str:
    """What becomes of it as a step's result or failure, and where it is refused also of what promises it."""
    told = _outcome(value)
    return told if told != REFUSED else f"refused, {_outcome(value, type(value))} where it is promised"


def _outcome(value: Any, promised: Any = None) -> str:
    ran: list[int] = []

    def body() -> Any:
        ran.append(1)
        if isinstance(value, Exception):
            raise value
        return value

    if promised is not None:
        body.__annotations__["return"] = promised

    def workflow(step: durable.Step, deps: Any) -> None:
        try:
            back = step("call", body)
        except durable.StepFailed as problem:
            said.append(f"`StepFailed`, `is_a`: {problem.is_a(type(value))}")
        except Exception as problem:
            if type(problem) is not type(value):
                raise
            said.append("same class")
        else:
            same = type(back) is type(value) and (back == value or repr(back) == repr(value))
            said.append("same" if same else f"**{type(back).__name__}**")

    said: list[str] = []
    with closing(memory()) as store:
        try:
            durable.run({}, workflow, id="a", store=store)
        except durable.UnstorableValue:
            return REFUSED if ran else "before the body"
    return said[0]


def table() -> str:
    """The table's lines."""
    lines = ["| package | what | comes back as |", "| --- | --- | --- |"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what, (package, make) in KINDS.items():
            lines.append(f"| {package} {version(package)} | {what.strip()} | {outcome(make())} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1])
    sys.stdout.write(table())
