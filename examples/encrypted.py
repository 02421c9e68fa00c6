"""A codec of your own: who reads the database does not read the values.

pip install 'durable-postgres[embedded,encryption]'
python examples/encrypted.py
"""

from __future__ import annotations

import hashlib
import hmac
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from cryptography.fernet import Fernet, MultiFernet

import durable
from durable.codecs import JsonCodec
from durable.stores import embedded


class EncryptedCodec:
    """JSON, encrypted and authenticated by Fernet (AES-128-CBC with HMAC-SHA256).

    `keys` are Fernet keys: the first encrypts, all decrypt. So a key is changed by putting a new one
    in front. `salt` makes fingerprints by which arguments cannot be guessed; it must stay the same for
    as long as runs are resumed.
    """

    name = "fernet"  # stands in every record; never changed

    def __init__(self, keys: Sequence[bytes], salt: bytes) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])
        self._salt = salt
        self._json = JsonCodec()

    def encode(self, value: Any, *, what: str, annotation: Any = None) -> bytes:
        """The value's JSON as a token; a token is base64, so quotes around it make it JSON again."""
        return (
            b'"'
            + self._fernet.encrypt(self._json.encode(value, what=what, annotation=annotation))
            + b'"'
        )

    def decode(self, text: bytes, *, run_id: str, where: str, annotation: Any = None) -> Any:
        """What the token says. An InvalidToken becomes `UnreadableRecord`, as whatever a codec raises."""
        decrypted = self._fernet.decrypt(text.strip(b'"'))
        return self._json.decode(decrypted, run_id=run_id, where=where, annotation=annotation)

    def fingerprint(self, value: Any, *, what: str) -> str:
        """A keyed hash: fingerprints stand in the database as they are."""
        plain = self._json.fingerprint(value, what=what)
        return hmac.new(self._salt, plain.encode(), hashlib.sha256).hexdigest()[:16]


@dataclass
class Patient:
    """What must not be read by chance."""

    name: str
    diagnosis: str


def examine(name: str) -> Patient:
    """A step whose result is a secret."""
    return Patient(name, "influenza")


def visit(step: durable.Step, _: object, name: str) -> Patient:
    """A workflow of one step."""
    return step("examine", examine, name)


def main() -> None:
    """Run a visit, then look into the database."""
    codec = EncryptedCodec([Fernet.generate_key()], salt=b"keep me with the keys")
    with tempfile.TemporaryDirectory() as directory, embedded(directory, codec=codec) as store:
        print(durable.run(None, visit, id="visit-1", input="Alice", store=store))
        print(
            durable.run(None, visit, id="visit-1", input="Alice", store=store),
            "(from the database)",
        )
        with psycopg.connect(store.url) as connection:
            for kind, record in connection.execute(
                "SELECT kind, record::text FROM durable_steps ORDER BY seq"
            ):
                print(f"{kind:7s} {record[:100]}…")


if __name__ == "__main__":
    main()
