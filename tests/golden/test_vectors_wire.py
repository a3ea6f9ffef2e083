"""Every byte vector of the wire protocol, encoded and decoded. Source: spec wire section 13."""

import zlib
from collections.abc import Callable
from typing import Any

import pytest
from crc32c import crc32c

from bkctl.formats import request_v2, request_v3
from bkctl.formats.availability import Availability
from bkctl.formats.entry import HEADER_BYTES, Digester, EntryHeader, mac_key, master_key, read_header
from bkctl.formats.frame import FrameCutter
from bkctl.formats.pb import wire_pb2 as pb
from bkctl.types import DigestType
from tests.shared_data import vectors

VECTORS = {vector["id"]: vector for vector in vectors("wire")["vectors"]}
Inputs = dict[str, Any]


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else bytes.fromhex(value)


def _body(frame: bytes) -> bytes:
    bodies = FrameCutter().cut(frame)
    assert len(bodies) == 1
    return bodies[0]


def _digester(inputs: Inputs) -> Digester:
    return Digester(DigestType[inputs["digest_type"]], bytes.fromhex(inputs["password_hex"]))


def _payload(inputs: Inputs) -> bytes:
    if "payload_rule" in inputs:
        assert inputs["payload_rule"] == "byte i = i mod 256, i = 0..19999"
        return bytes(i % 256 for i in range(20000))
    return bytes.fromhex(inputs["payload_hex"])


def _pack(inputs: Inputs) -> bytes:
    payload = _payload(inputs)
    before = inputs["length"] - len(payload)
    (body,), after = _digester(inputs).pack_entries(
        inputs["ledger_id"], inputs["entry_id"], inputs["lac"], before, [payload]
    )
    assert after == inputs["length"]
    return body


def check_master_key(inputs: Inputs, expected: bytes) -> None:
    assert master_key(bytes.fromhex(inputs["password_hex"])) == expected


def check_mac_key(inputs: Inputs, expected: bytes) -> None:
    assert mac_key(bytes.fromhex(inputs["password_hex"])) == expected


def check_crc32c(inputs: Inputs, expected: bytes) -> None:
    assert crc32c(bytes.fromhex(inputs["data_hex"])).to_bytes(4) == expected


def check_crc32(inputs: Inputs, expected: bytes) -> None:
    assert zlib.crc32(bytes.fromhex(inputs["data_hex"])).to_bytes(4) == expected


def check_entry_packet(inputs: Inputs, expected: bytes) -> None:
    ledger_id, entry_id = inputs["ledger_id"], inputs["entry_id"]
    assert _pack(inputs) == expected
    assert _digester(inputs).open_entry(expected, ledger_id, entry_id) == _payload(inputs)
    header = EntryHeader(ledger_id, entry_id, inputs["lac"], inputs["length"])
    assert read_header(expected) == _digester(inputs).open_last_entry(expected, ledger_id) == header


def check_entry_digest(inputs: Inputs, expected: bytes) -> None:
    body = _pack(inputs)
    assert body[HEADER_BYTES : len(body) - inputs["length"]] == expected


def check_lac_packet(inputs: Inputs, expected: bytes) -> None:
    assert _digester(inputs).pack_lac(inputs["ledger_id"], inputs["lac"]) == expected
    assert _digester(inputs).open_lac(expected, inputs["ledger_id"]) == inputs["lac"]


def check_packet_header(inputs: Inputs, expected: bytes) -> None:
    numbers = inputs["version"], inputs["opcode"], inputs["flags"]
    assert request_v2.pack_header(*numbers).to_bytes(4) == expected
    assert request_v2.unpack_header(int.from_bytes(expected)) == numbers


def check_v2_add_request(inputs: Inputs, expected: bytes) -> None:
    digester, payload = _digester(inputs), _payload(inputs)
    request = request_v2.AddRequest(inputs["flags"], digester.master_key, _pack(inputs))
    assert request.encode() == expected
    assert request_v2.decode_request(_body(expected)) == request
    parts, after = digester.pack_adds(
        inputs["ledger_id"],
        inputs["entry_id"],
        inputs["lac"],
        inputs["length"] - len(payload),
        [payload],
        flags=inputs["flags"],
    )
    assert (b"".join(parts), after) == (expected, inputs["length"])


def check_v2_read_request(inputs: Inputs, expected: bytes) -> None:
    request = request_v2.ReadRequest(
        inputs["flags"],
        inputs["ledger_id"],
        inputs["entry_id"],
        _bytes(inputs["master_key_hex"]),
        inputs.get("version", 2),
    )
    assert request.encode() == expected
    assert request_v2.decode_request(_body(expected)) == request


def check_v2_batch_read_request(inputs: Inputs, expected: bytes) -> None:
    request = request_v2.BatchReadRequest(
        inputs["flags"],
        inputs["ledger_id"],
        inputs["entry_id"],
        inputs["request_id"],
        inputs["max_count"],
        inputs["max_size"],
        _bytes(inputs["master_key_hex"]),
    )
    assert request.encode() == expected
    assert request_v2.decode_request(_body(expected)) == request


def check_v2_auth_request(inputs: Inputs, expected: bytes) -> None:
    packet = request_v2.AuthPacket(inputs["auth_plugin_name"], bytes.fromhex(inputs["payload_hex"]))
    assert packet.encode() == expected
    assert request_v2.decode_request(_body(expected)) == packet


def check_v2_auth_response(inputs: Inputs, expected: bytes) -> None:
    packet = request_v2.AuthPacket(inputs["auth_plugin_name"], bytes.fromhex(inputs["payload_hex"]))
    assert packet.encode() == expected
    assert request_v2.decode_response(_body(expected)) == packet


def check_v2_add_response(inputs: Inputs, expected: bytes) -> None:
    response = request_v2.AddResponse(**{"version": 2, **inputs})
    assert response.encode() == expected
    assert request_v2.decode_response(_body(expected)) == response


def check_v2_read_response(inputs: Inputs, expected: bytes) -> None:
    response = request_v2.ReadResponse(
        inputs["rc"],
        inputs["ledger_id"],
        inputs["entry_id"],
        _bytes(inputs["entry_hex"]) or b"",
        inputs.get("version", 2),
    )
    assert response.encode() == expected
    assert request_v2.decode_response(_body(expected)) == response


def check_v2_batch_read_response(inputs: Inputs, expected: bytes) -> None:
    response = request_v2.BatchReadResponse(
        inputs["rc"],
        inputs["ledger_id"],
        inputs["entry_id"],
        inputs["request_id"],
        tuple(map(bytes.fromhex, inputs["entries_hex"])),
    )
    assert response.encode() == expected
    assert request_v2.decode_response(_body(expected)) == response


BYTES_FIELDS = (
    "masterKey",
    "body",
    "payload",
    "lacBody",
    "lastEntryBody",
    "availabilityOfEntriesOfLedger",
)


def _fill(message: Any, inputs: Inputs) -> Any:
    message.SetInParent()
    for name, value in inputs.items():
        if isinstance(value, dict):
            _fill(getattr(message, name), value)
        elif isinstance(value, list):
            for item in value:
                _fill(getattr(message, name).add(), item)
        else:
            setattr(message, name, bytes.fromhex(value) if name in BYTES_FIELDS else value)
    return message


def check_v3_request(inputs: Inputs, expected: bytes) -> None:
    request = _fill(pb.Request(), inputs)
    assert request_v3.encode(request) == expected
    assert request_v3.decode_request(_body(expected)) == request


def check_v3_response(inputs: Inputs, expected: bytes) -> None:
    response = _fill(pb.Response(), inputs)
    assert request_v3.encode(response) == expected
    assert request_v3.decode_response(_body(expected)) == response
    assert request_v3.status_of(response) == inputs["status"]


def check_availability_encode(inputs: Inputs, expected: bytes) -> None:
    availability = Availability.of(inputs["entries"])
    ids = sorted(set(inputs["entries"]))
    assert availability.encode() == expected
    assert Availability.decode(expected) == availability
    assert (list(availability), availability.entry_count) == (ids, len(ids))


def check_availability_decode(inputs: Inputs, expected: list[int]) -> None:
    availability = Availability.decode(bytes.fromhex(inputs["encoded_hex"]))
    assert list(availability) == expected
    assert availability.entry_count == len(expected)
    asked = range(-1, max(expected) + 10)
    assert [entry_id for entry_id in asked if entry_id in availability] == expected
    assert availability.encode().hex() == inputs["encoded_hex"]


CHECKS: dict[str, Callable[[Inputs, Any], None]] = {
    name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")
}


def test_there_are_191_vectors() -> None:
    assert len(VECTORS) == len(vectors("wire")["vectors"]) == 191
    assert {vector["kind"] for vector in VECTORS.values()} == set(CHECKS)


@pytest.mark.parametrize("name", VECTORS)
def test_vector(name: str) -> None:
    vector = VECTORS[name]
    expected = vector["expected"] if "expected" in vector else bytes.fromhex(vector["expected_hex"])
    CHECKS[vector["kind"]](vector["inputs"], expected)


DECLARED_ORDER = [name for name, vector in VECTORS.items() if "expected_hex_declared_order" in vector]


def test_field_orders_are_checked_at_all() -> None:
    assert len(DECLARED_ORDER) == 9


@pytest.mark.parametrize("name", DECLARED_ORDER)
def test_either_field_order_decodes_to_the_same_message(name: str) -> None:
    vector = VECTORS[name]
    bodies = [_body(bytes.fromhex(vector[key])) for key in ("expected_hex", "expected_hex_declared_order")]
    assert bodies[0] != bodies[1]
    assert request_v3.decode_request(bodies[0]) == request_v3.decode_request(bodies[1])
