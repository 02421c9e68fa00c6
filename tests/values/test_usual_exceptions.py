"""Which of the usual exceptions a workflow catches by their class; all others are told by `error.is_a`."""

from __future__ import annotations

import json
import smtplib
import sqlite3
import subprocess
import urllib.error
from collections.abc import Callable
from contextlib import closing
from email.message import Message
from typing import Any

import httpx
import psycopg
import pydantic
import pytest

import durable
from durable.stores import memory

REQUEST = httpx.Request("GET", "http://x")


def from_call(call: Callable[[], Any]) -> Exception:
    """What it raises."""
    try:
        call()
    except Exception as problem:
        return problem
    raise AssertionError("it raised nothing")


class Model(pydantic.BaseModel):
    """Something to be validated."""

    number: int


KEPT: list[Exception] = [
    OSError(2, "no"),
    FileNotFoundError(2, "no", "f"),
    KeyError("k"),
    ConnectionRefusedError(111, "refused"),
    TimeoutError("late"),
    UnicodeDecodeError("utf8", b"x", 0, 1, "bad"),
    subprocess.CalledProcessError(1, ["ls"]),
    smtplib.SMTPResponseException(550, "no"),
    sqlite3.IntegrityError("x"),
    httpx.ConnectError("no"),
    psycopg.errors.UniqueViolation("twice"),
    ExceptionGroup("some", [ValueError("a")]),
    StopIteration(1),
    from_call(lambda: json.loads("{")),
]
TOLD: list[Exception] = [
    httpx.HTTPStatusError("500", request=REQUEST, response=httpx.Response(500, request=REQUEST)),
    httpx.ConnectTimeout("late", request=REQUEST),
    urllib.error.HTTPError("u", 500, "m", Message(), None),
    from_call(lambda: Model.model_validate({"number": "x"})),
]


def caught(problem: Exception) -> Exception:
    """What a workflow catches, on the first run and again."""

    def body() -> None:
        raise problem

    def workflow(step: durable.Step, deps: Any) -> None:
        try:
            step("fails", body)
        except Exception as error:
            found.append(error)

    found: list[Exception] = []
    with closing(memory()) as store:
        durable.run({}, workflow, id="a", store=store)
    return found[0]


@pytest.mark.parametrize("problem", KEPT, ids=lambda problem: type(problem).__name__)
def test_a_usual_exception_is_caught_by_its_class(problem: Exception) -> None:
    error = caught(problem)
    assert type(error) is type(problem)
    assert str(error) == str(problem)


@pytest.mark.parametrize("problem", TOLD, ids=lambda problem: type(problem).__name__)
def test_what_cannot_be_rebuilt_is_told_by_its_class(problem: Exception) -> None:
    error = caught(problem)
    assert isinstance(error, durable.StepFailed)
    assert error.is_a(type(problem))
    assert not error.is_a(ZeroDivisionError)
