"""Frames: a 4-byte big-endian length, then that many bytes. Both directions, every version.

    offset  size  field
    0       i32   length of the body, without these 4 bytes
    4       ...   body

The limit of a connection counts the 4 length bytes too, as Java's does.
Source: spec wire section 1; upstream BookieNettyServer.
"""

from struct import Struct

from bkctl.errors import CorruptDataError

LENGTH = Struct(">i")
LENGTH_BYTES = 4
assert LENGTH.size == LENGTH_BYTES

FRAME_BYTES_MAX = 5_242_880  # Java's nettyMaxFrameSizeBytes; Pulsar ships 5253120

V3_FIRST_BYTE = 0x0A  # the header field of a v3 message; v0, v1 and v2 start with 0, 1 and 2


def pack_frame(body: bytes) -> bytes:
    """`body` with its length in front."""
    return LENGTH.pack(len(body)) + body


class FrameCutter:
    """Cuts the stream of one direction of a connection into frame bodies.

    Holds at most one unfinished frame, so never more than `frame_bytes_max` and one chunk.
    """

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._body_bytes_max = frame_bytes_max - LENGTH_BYTES
        self._chunks: list[bytes] = []  # the unfinished frame, as it arrived
        self._pending_bytes = 0
        self._wanted_bytes = LENGTH_BYTES  # cutting is useless before this much is pending

    @property
    def pending_bytes(self) -> int:
        """Bytes of the unfinished frame; they are lost when the stream ends here."""
        return self._pending_bytes

    def cut(self, chunk: bytes) -> list[bytes]:
        """Bodies of the frames that `chunk` completes, in order.

        Raises:
            CorruptDataError: a length is negative or over the limit. Seen as soon as the length
                field is there; the stream cannot be cut any further.
        """
        buffer = self.gather(chunk)
        return self.cut_from(buffer, 0) if buffer else []

    def gather(self, chunk: bytes) -> bytes:
        """What is pending and `chunk` as one buffer; b"" while no frame can be complete.

        For callers with a faster way to take the first frames; they give the rest to `cut_from`.
        """
        if not self._chunks and len(chunk) >= LENGTH_BYTES:
            return chunk
        self._chunks.append(chunk)
        self._pending_bytes += len(chunk)
        if self._pending_bytes < self._wanted_bytes:
            return b""
        buffer = b"".join(self._chunks)
        self._chunks.clear()
        self._pending_bytes = 0
        return buffer

    def cut_from(self, buffer: bytes, offset: int) -> list[bytes]:
        """Bodies of the frames of `buffer` from `offset` on; keeps what is left over.

        Raises:
            CorruptDataError: as `cut`.
        """
        bodies: list[bytes] = []
        unpack_length = LENGTH.unpack_from
        end = len(buffer)
        wanted = LENGTH_BYTES
        while end - offset >= LENGTH_BYTES:
            (length,) = unpack_length(buffer, offset)
            if not 0 <= length <= self._body_bytes_max:
                raise CorruptDataError(
                    f"frame of {length} bytes: the limit is {self._body_bytes_max} without the length field"
                )
            after = offset + LENGTH_BYTES + length
            if after > end:
                wanted = after - offset
                break
            bodies.append(buffer[offset + LENGTH_BYTES : after])
            offset = after
        if offset < end:
            self._chunks.append(buffer[offset:])
        self._pending_bytes = end - offset
        self._wanted_bytes = wanted
        return bodies
