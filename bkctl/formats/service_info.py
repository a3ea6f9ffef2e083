"""What a bookie publishes about itself in its registration.

Source: spec metadata section 9; upstream BookieServiceInfo, message BookieServiceInfoFormat.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bkctl.errors import CorruptDataError
from bkctl.formats import message
from bkctl.formats.bookie_id import spelled_address
from bkctl.formats.message import Field, Kind, Schema
from bkctl.types import Address, BookieId

BOOKIE_RPC = "bookie-rpc"  # the protocol of the endpoint that clients connect to

_ENDPOINT = Schema(
    Field(1, "id", Kind.STRING, required=True),
    Field(2, "port", Kind.INT32, required=True),
    Field(3, "host", Kind.STRING, required=True),
    Field(4, "protocol", Kind.STRING, required=True),
    Field(5, "auth", Kind.STRING, repeated=True),
    Field(6, "extensions", Kind.STRING, repeated=True),
)
_PROPERTY = Schema(Field(1, "key", Kind.STRING), Field(2, "value", Kind.STRING))
_SERVICE_INFO = Schema(
    Field(6, "endpoints", Kind.MESSAGE, repeated=True, schema=_ENDPOINT),
    Field(7, "properties", Kind.MESSAGE, repeated=True, schema=_PROPERTY),
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`extensions` holds "tls" when the bookie offers it."""

    id: str
    host: str
    port: int
    protocol: str
    auth: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BookieServiceInfo:
    endpoints: tuple[Endpoint, ...]
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def bookie_rpc_address(self) -> Address | None:
        """Where clients connect: the first `bookie-rpc` endpoint."""
        for endpoint in self.endpoints:
            if endpoint.protocol == BOOKIE_RPC:
                return Address(endpoint.host, endpoint.port)
        return None


def encode(info: BookieServiceInfo) -> bytes:
    return message.encode(
        _SERVICE_INFO,
        {
            "endpoints": [
                {name: getattr(endpoint, name) for name in _ENDPOINT.by_name} for endpoint in info.endpoints
            ],
            "properties": [{"key": key, "value": value} for key, value in info.properties.items()],
        },
    )


def decode(data: bytes, bookie_id: BookieId) -> BookieServiceInfo:
    """Read a registration. Empty data (old bookies) stands for the address in the bookie id.

    Raises CorruptDataError, also for empty data and an id that spells no address.
    """
    if not data:
        address = spelled_address(bookie_id)
        if address is None:
            raise CorruptDataError(f"bookie {bookie_id} published no address, and its id names none")
        return BookieServiceInfo((Endpoint(bookie_id, address.host, address.port, BOOKIE_RPC),))
    fields = message.decode(_SERVICE_INFO, data)
    endpoints = tuple(
        Endpoint(**item | {"auth": tuple(item["auth"]), "extensions": tuple(item["extensions"])})
        for item in fields["endpoints"]
    )
    for endpoint in endpoints:
        if not 0 <= endpoint.port <= 0xFFFF:
            raise CorruptDataError(f"endpoint {endpoint.id} of bookie {bookie_id} has port {endpoint.port}")
    properties = {item.get("key", ""): item.get("value", "") for item in fields["properties"]}
    return BookieServiceInfo(endpoints, properties)
