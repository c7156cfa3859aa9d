"""Encryption of connections between processes of a Ray cluster that encrypts its own.

Ray is told so by its environment: RAY_USE_TLS, and in RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT the
paths of the host's certificate, of its key, and of the certificates that those of others must be signed by.
https://docs.ray.io/en/latest/ray-core/configure.html#tls-authentication
"""

from __future__ import annotations

import os
import socket
import ssl


def encrypts() -> bool:
    """Whether Ray encrypts its connections."""
    return os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true")


def encrypted(connected: socket.socket, server_side: bool) -> socket.socket:
    """The socket `connected`, encrypted, where Ray's connections are; else as it is.

    Both sides show the certificate that Ray has for their host, and accept one that is signed as Ray wants it, whatever
    host it is for: whom they talk to, the key of the connection tells.

    Raises:
        OSError: the other side does not encrypt, or is not one of the cluster; no such certificates.
    """
    if not encrypts():
        return connected
    return _context(server_side).wrap_socket(connected, server_side)


def _context(server_side: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    context.load_verify_locations(os.environ["RAY_TLS_CA_CERT"])
    if server_side:
        # Without tickets, nothing comes to who asks before there is an answer.
        context.num_tickets = 0
    return context
