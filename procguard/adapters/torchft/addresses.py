"""Where torchft's servers are told to listen: an address with its port, as ``bind="[::]:0"``. Pure."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

from procguard.errors import UsageError

PORT_MAX = 65_535


def parse_bind(bind: str) -> tuple[str, int]:
    """The address, without brackets, and the port. Raises ``UsageError``."""
    host, colon, port = bind.rpartition(":") if isinstance(bind, str) else ("", "", "")
    with suppress(ValueError):
        address = ipaddress.ip_address(host[1:-1] if host[:1] + host[-1:] == "[]" else host)
        if colon and port.isdecimal() and int(port) <= PORT_MAX:
            return str(address), int(port)
    raise UsageError(f"bind is {bind!r}; give an address and a port, such as '[::]:29510' or '127.0.0.1:0'")
