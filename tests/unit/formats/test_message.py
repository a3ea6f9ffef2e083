"""The field-table codec against protobuf's own, and against broken bytes."""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from bkctl.errors import CorruptDataError
from bkctl.formats import message
from bkctl.formats.ledger_metadata import LEDGER_METADATA
from bkctl.formats.message import Field, Kind, Message, Schema

_NUMBERS = {
    Kind.INT32: st.integers(-(2**31), 2**31 - 1),
    Kind.INT64: st.integers(-(2**63), 2**63 - 1),
}


def messages(schema: Schema) -> st.SearchStrategy[Message]:
    required = {field.name: values(field) for field in schema.fields if field.required or field.repeated}
    optional = {field.name: values(field) for field in schema.fields if field.name not in required}
    return st.fixed_dictionaries(required, optional=optional)


def values(field: Field) -> st.SearchStrategy[Any]:
    if field.schema is not None:
        one: st.SearchStrategy[Any] = messages(field.schema)
    elif field.kind is Kind.ENUM:
        one = st.sampled_from(sorted(field.names.values()))
    elif field.kind is Kind.STRING:
        one = st.text(max_size=20)
    elif field.kind is Kind.BYTES:
        one = st.binary(max_size=20)
    else:
        one = _NUMBERS[field.kind]
    return st.lists(one, max_size=3) if field.repeated else one


def describe(schema: Schema, name: str, into: Any) -> None:
    """Fill a protobuf message descriptor from one of our field tables."""
    into.name = name
    for field in schema.fields:
        line = into.field.add(name=field.name, number=field.number)
        line.label = 3 if field.repeated else 2 if field.required else 1
        line.type = {"int32": 5, "int64": 3, "enum": 14, "string": 9, "bytes": 12, "message": 11}[
            field.kind.value
        ]
        if field.schema is not None:
            line.type_name = f".bkctl_test.{name}.{field.name}Type"
            describe(field.schema, f"{field.name}Type", into.nested_type.add())
        elif field.kind is Kind.ENUM:
            line.type_name = f".bkctl_test.{name}.{field.name}Type"
            enum = into.enum_type.add(name=f"{field.name}Type")
            for label, number in field.names.items():
                enum.value.add(name=f"{field.name}_{label}", number=number)


def protobuf_class(schema: Schema) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="bkctl_test.proto", package="bkctl_test", syntax="proto2")
    describe(schema, "Top", file.message_type.add())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bkctl_test.Top"))


ORACLE = protobuf_class(LEDGER_METADATA)


def fill(into: Any, schema: Schema, fields: Message) -> None:
    for field, value in message.present(schema, fields):
        if field.schema is not None:
            fill(getattr(into, field.name).add(), field.schema, value)
        elif field.repeated:
            getattr(into, field.name).append(value)
        else:
            setattr(into, field.name, value)


@settings(max_examples=150, deadline=None)
@given(messages(LEDGER_METADATA))
def test_protobuf_writes_the_same_bytes(fields: Message) -> None:
    oracle = ORACLE()
    fill(oracle, LEDGER_METADATA, fields)
    data = message.encode(LEDGER_METADATA, fields)
    assert data == oracle.SerializeToString()
    assert message.decode(LEDGER_METADATA, data) == fields
    assert json_format.MessageToDict(ORACLE.FromString(data)) == json_format.MessageToDict(oracle)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        message.decode(LEDGER_METADATA, data)
    except CorruptDataError:
        pass


SMALL = Schema(Field(1, "number", Kind.INT32, required=True), Field(2, "text", Kind.STRING))


@pytest.mark.parametrize(
    "data",
    [
        b"",  # required field missing
        b"\x08",  # varint cut off
        b"\x08" + b"\xff" * 10 + b"\x01",  # 11 bytes
        b"\x08\x01\x12\x05abc",  # string cut off
        b"\x08\x01\x12\x01\xff",  # not UTF-8
        b"\x08\x01\x00\x01",  # field number 0
        b"\x08\x01\x1b\x1c",  # a group
        b"\x08\x01\x1d\x00",  # fixed32 cut off
    ],
)
def test_broken_messages_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        message.decode(SMALL, data)


def test_unknown_fields_of_every_wire_type_are_skipped() -> None:
    data = b"\x18\x07" + b"\x21" + bytes(8) + b"\x2a\x03abc" + b"\x35" + bytes(4) + b"\x08\x01"
    assert message.decode(SMALL, data) == {"number": 1}


def test_a_known_number_of_another_wire_type_is_unknown() -> None:
    assert message.decode(SMALL, b"\x08\x05\x10\x07") == {"number": 5}


def test_int32_keeps_the_low_bits_and_the_last_value_wins() -> None:
    assert message.decode(SMALL, b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01") == {"number": -1}
    assert message.decode(SMALL, b"\x08\x80\x80\x80\x80\x18\x08\x02") == {"number": 2}
