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
        bodies: list[bytes] = []
        start = 0
        while end := self.frame_end(buffer, start):
            bodies.append(buffer[start + LENGTH_BYTES : end])
            start = end
        self.keep(buffer, start)
        return bodies

    def gather(self, chunk: bytes) -> bytes:
        """What is pending and `chunk` as one buffer; b"" while no frame can be complete.

        With `frame_end` and `keep` for a caller that takes frames out of the buffer by itself.
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
        self._wanted_bytes = LENGTH_BYTES
        return buffer

    def frame_end(self, buffer: bytes, start: int) -> int:
        """Where the frame that starts at `start` ends; 0 if the buffer ends first.

        Raises:
            CorruptDataError: as `cut`.
        """
        available = len(buffer) - start
        if available < LENGTH_BYTES:
            return 0
        length: int = LENGTH.unpack_from(buffer, start)[0]
        if not 0 <= length <= self._body_bytes_max:
            raise CorruptDataError(
                f"frame of {length} bytes: the limit is {self._body_bytes_max} without the length field"
            )
        if LENGTH_BYTES + length > available:
            self._wanted_bytes = LENGTH_BYTES + length
            return 0
        return start + LENGTH_BYTES + length

    def keep(self, buffer: bytes, start: int) -> None:
        """Holds what `frame_end` found incomplete at `start` until the next chunk."""
        if start < len(buffer):
            self._chunks.append(buffer[start:])
            self._pending_bytes = len(buffer) - start
