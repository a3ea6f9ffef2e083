import pytest
from hypothesis import given
from hypothesis import strategies as st

from bkctl.errors import DigestMatchError, IncorrectParameterError
from bkctl.formats.entry import Digester, EntryHeader, read_header
from bkctl.formats.frame import FrameCutter
from bkctl.formats.request_v2 import HIGH_PRIORITY, RECOVERY_ADD, AddRequest, decode_request
from bkctl.types import DigestType

PROTECTING = [DigestType.CRC32, DigestType.MAC, DigestType.CRC32C]
payload_lists = st.lists(st.binary(max_size=40), max_size=8)


@pytest.mark.parametrize("digest_type", DigestType)
@given(payloads=payload_lists, first=st.integers(0, 2**62), before=st.integers(0, 2**62))
def test_frames_and_entries_of_a_batch_agree(
    digest_type: DigestType, payloads: list[bytes], first: int, before: int
) -> None:
    digester = Digester(digest_type, b"pw")
    bodies, after = digester.pack_entries(7, first, first - 1, before, payloads)
    parts, after_adds = digester.pack_adds(7, first, first - 1, before, payloads, flags=RECOVERY_ADD)
    requests = [decode_request(body) for body in FrameCutter().cut(b"".join(parts))]
    assert requests == [AddRequest(RECOVERY_ADD, digester.master_key, body) for body in bodies]
    assert after == after_adds == before + sum(map(len, payloads))
    length = before
    for entry_id, (body, payload) in enumerate(zip(bodies, payloads, strict=True), first):
        length += len(payload)
        assert read_header(body) == EntryHeader(7, entry_id, first - 1, length)
        assert digester.open_entry(body, 7, entry_id) == payload
    assert digester.open_entries(bodies, 7, range(first, first + len(bodies))) == payloads


@pytest.mark.parametrize("digest_type", DigestType)
def test_payloads_may_be_views(digest_type: DigestType) -> None:
    digester = Digester(digest_type, b"")
    data = bytearray(b"0123456789")
    views = [memoryview(data)[:4], bytearray(b"abc")]
    assert digester.pack_entries(1, 0, -1, 0, views) == digester.pack_entries(1, 0, -1, 0, [b"0123", b"abc"])


@pytest.mark.parametrize("digest_type", PROTECTING)
@given(bit=st.integers(min_value=0), payload=st.binary(max_size=20))
def test_one_flipped_bit_anywhere_is_noticed(digest_type: DigestType, bit: int, payload: bytes) -> None:
    digester = Digester(digest_type, b"pw")
    (body,), _ = digester.pack_entries(1, 0, -1, 0, [payload])
    damaged = bytearray(body)
    damaged[bit // 8 % len(body)] ^= 1 << bit % 8
    with pytest.raises(DigestMatchError):
        digester.open_entry(bytes(damaged), 1, 0)
    (opened,) = digester.open_entries([bytes(damaged)], 1, [0])
    assert isinstance(opened, DigestMatchError)


def test_the_password_protects_only_mac() -> None:
    (body,), _ = Digester(DigestType.MAC, b"right").pack_entries(1, 0, -1, 0, [b"x"])
    with pytest.raises(DigestMatchError, match="MAC digest does not match"):
        Digester(DigestType.MAC, b"wrong").open_entry(body, 1, 0)


@pytest.mark.parametrize("digest_type", DigestType)
def test_an_entry_of_another_place_is_refused(digest_type: DigestType) -> None:
    digester = Digester(digest_type, b"")
    (body,), _ = digester.pack_entries(1, 5, -1, 0, [b"x"])
    with pytest.raises(DigestMatchError, match="got an entry of ledger 1"):
        digester.open_entry(body, 2, 5)
    with pytest.raises(DigestMatchError, match="got entry 5"):
        digester.open_entry(body, 1, 4)
    assert digester.open_last_entry(body, 1) == EntryHeader(1, 5, -1, 1)
    with pytest.raises(DigestMatchError, match="got an entry of ledger 1"):
        digester.open_last_entry(body, 2)


def test_one_bad_entry_does_not_spoil_the_others() -> None:
    digester = Digester(DigestType.CRC32C, b"")
    bodies, _ = digester.pack_entries(1, 0, -1, 0, [b"a", b"b", b"c", b"d"])
    damaged = [bodies[0], bodies[1][:-1] + b"X", bodies[2][:35], bodies[3]]
    opened = digester.open_entries(damaged, 1, [0, 1, 2, 3])
    assert opened[0] == b"a"
    assert opened[3] == b"d"
    assert "digest does not match" in str(opened[1])
    assert "35 bytes, at least 36" in str(opened[2])
    swapped = digester.open_entries([bodies[0], bodies[2]], 1, [0, 1])
    assert swapped[0] == b"a"
    assert "got entry 2" in str(swapped[1])


@pytest.mark.parametrize("digest_type", DigestType)
@pytest.mark.parametrize("size", [0, 1, 31])
def test_an_entry_shorter_than_its_header_is_refused(digest_type: DigestType, size: int) -> None:
    with pytest.raises(DigestMatchError):
        Digester(digest_type, b"").open_entry(bytes(size), 0, 0)
    with pytest.raises(DigestMatchError, match="shorter than its header"):
        read_header(bytes(size))


@pytest.mark.parametrize("digest_type", DigestType)
def test_lac_packets_are_checked(digest_type: DigestType) -> None:
    digester = Digester(digest_type, b"pw")
    packet = digester.pack_lac(3, 17)
    assert digester.open_lac(packet, 3) == 17
    with pytest.raises(DigestMatchError, match="got the LAC of ledger 3"):
        digester.open_lac(packet, 4)
    with pytest.raises(DigestMatchError, match="LAC packet of"):
        digester.open_lac(packet[:-1], 3)
    if digest_type in PROTECTING:
        with pytest.raises(DigestMatchError, match="digest of the LAC packet"):
            digester.open_lac(bytes([packet[0] ^ 1]) + packet[1:], 3)


@pytest.mark.parametrize(
    ("ledger_id", "first_entry_id", "lac", "length"),
    [(-1, 0, -1, 0), (0, -1, -1, 0), (0, 0, -2, 0), (0, 0, -1, -1), (2**63, 0, -1, 0), (0, 2**63 - 1, -1, 0),
     (0, 0, 2**63, 0), (0, 0, -1, 2**63 - 3)],
)  # fmt: skip
def test_ids_and_lengths_out_of_range_are_refused(
    ledger_id: int, first_entry_id: int, lac: int, length: int
) -> None:
    digester = Digester(DigestType.CRC32C, b"")
    payloads = [b"ab", b"cd"]
    with pytest.raises(IncorrectParameterError):
        digester.pack_adds(ledger_id, first_entry_id, lac, length, payloads)
    with pytest.raises(IncorrectParameterError):
        digester.pack_entries(ledger_id, first_entry_id, lac, length, payloads)


@pytest.mark.parametrize("digest_type", DigestType)
def test_the_largest_payload_just_fits_a_frame(digest_type: DigestType) -> None:
    digester = Digester(digest_type, b"")
    limit = digester.payload_bytes_max(1000)
    parts, _ = digester.pack_adds(
        0, 0, -1, 0, [b"small", bytes(limit)], frame_bytes_max=1000, flags=HIGH_PRIORITY
    )
    assert max(map(len, FrameCutter(1000).cut(b"".join(parts)))) == 996
    with pytest.raises(IncorrectParameterError, match=f"at most {limit} fit a frame"):
        digester.pack_adds(0, 0, -1, 0, [b"small", bytes(limit + 1)], frame_bytes_max=1000)
