"""Checks provenances with software that is not Falaj's.

    verify.py KEY ENVELOPE...

KEY is a log's verifier key (C2SP signed note). For each envelope one line of JSON: its payload's subjects, or why it is refused.
"""

import base64
import json
import sys

from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

ED25519 = 1


def key_of(text):
    name, number, encoded = text.split("+", 2)
    kind, *public = base64.b64decode(encoded)
    if kind != ED25519:
        raise ValueError("no Ed25519 key")
    return SSlibKey(f"{name}+{number}", "ed25519", "ed25519", {"public": bytes(public).hex()})


def check(path, key):
    with open(path, encoding="utf-8") as file:
        envelope = Envelope.from_dict(json.load(file))
    envelope.verify([key], 1)
    if envelope.payload_type != "application/vnd.in-toto+json":
        raise ValueError(f"a payload of type {envelope.payload_type}")
    payload = json.loads(envelope.payload)
    statement = json_format.ParseDict(payload, statement_pb2.Statement())
    Statement.copy_from_pb(statement).validate()
    if statement.predicate_type != "https://slsa.dev/provenance/v1":
        raise ValueError(f"a predicate of type {statement.predicate_type}")
    # Members of one's own begin with one's name; all others are SLSA's.
    slsa = {name: value for name, value in payload["predicate"].items() if not name.startswith("falaj_")}
    json_format.ParseDict(slsa, provenance_pb2.Provenance())
    return {subject.name: dict(subject.digest) for subject in statement.subject}


def main():
    key = key_of(sys.argv[1])
    for path in sys.argv[2:]:
        try:
            answer = {"verified": check(path, key)}
        except Exception as why:  # Whatever is wrong with it is why it is refused.
            answer = {"refused": f"{type(why).__name__}: {why}"}
        print(json.dumps(answer))


main()
