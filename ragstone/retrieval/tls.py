"""Encryption of connections between processes of a Ray cluster that encrypts its own.

Ray is told so by its environment: RAY_USE_TLS, and in RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT the
paths of the host's certificate, of its key, and of the certificates that those of others must be signed by.
https://docs.ray.io/en/latest/ray-core/configure.html#tls-authentication
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from ragstone.errors import InputError
from ragstone.processes.ray_cluster import encrypts

CERTIFICATE, KEY, AUTHORITY = FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")


def tls_context(server_side: bool) -> ssl.SSLContext | None:
    """What encrypts connections as Ray's are, for one of both sides; None where Ray's are not encrypted.

    Each side shows the certificate that Ray has for its host, and accepts one that is signed as Ray wants it; whoever
    connects, only one for the address that he has connected to.

    Raises:
        InputError: a file is missing, or no certificate or key.
    """
    if not encrypts():
        return None
    for name in FILES:
        if not Path(os.environ.get(name, "")).is_file():
            raise InputError(
                f"RAY_USE_TLS is set, but {name} is {os.environ.get(name, '')!r}, which is not a file; give it the "
                "path that Ray has on this host."
            )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(os.environ[CERTIFICATE], os.environ[KEY])
        context.load_verify_locations(os.environ[AUTHORITY])
    except OSError as error:
        files = ", ".join(f"{name} ({os.environ[name]})" for name in FILES)
        raise InputError(
            f"The certificates of Ray cannot be used ({error.strerror or error}); check {files}."
        ) from error
    if server_side:
        # Without tickets, nothing comes to who asks before there is an answer.
        context.num_tickets = 0
    return context
