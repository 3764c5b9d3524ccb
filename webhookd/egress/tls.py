"""What a connection trusts, and what it shows of itself."""

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from webhookd.egress.handshake import Client

# What clients of today offer: ECDHE alone. Whoever gets a key later cannot read what was recorded, and no server
# chooses the size of a group, as with DHE. CBC with SHA-2 stays for Windows Server 2012 R2, which has no ECDHE-RSA with
# GCM; RSA key exchange and CBC with SHA-1 are not in Python's own list either. TLS 1.3 has ciphers of its own.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!aNULL:!SHA1:!AESCCM"
_NO_COMPRESSED_CERTIFICATES = 1 << 33  # SSL_OP_NO_RX_CERTIFICATE_COMPRESSION; OpenSSL before 3.2 has none anyway


@lru_cache(maxsize=1024)  # a connection is only used again with the very same context, also after a reload
def tls_context(authorities: str = "", certificate: str = "", key: str = "") -> ssl.SSLContext:
    """The TLS of a client; all are PEM texts. Without authorities it trusts those of the system.

    The environment has no say: SSL_CERT_FILE is not trusted, and SSLKEYLOGFILE gets no keys. Raises ValueError, the
    rest of a sentence that begins with the table.
    """
    context = Client(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | _NO_COMPRESSED_CERTIFICATES
    context.set_alpn_protocols(["http/1.1"])
    if authorities:
        try:
            context.load_verify_locations(cadata=authorities)
        except (ssl.SSLError, ValueError):
            raise ValueError("ca_file holds no certificate in PEM") from None
    else:
        paths = ssl.get_default_verify_paths()
        if os.path.isfile(paths.openssl_cafile):
            context.load_verify_locations(cafile=paths.openssl_cafile)
        if os.path.isdir(paths.openssl_capath):
            context.load_verify_locations(capath=paths.openssl_capath)
    if certificate:
        with _as_file(f"{certificate}\n{key}") as path:
            try:
                context.load_cert_chain(path, password="")  # an encrypted key must not make it ask the terminal
            except (ssl.SSLError, ValueError):
                why = "certificate_file and key_file are not a certificate and its key, unencrypted, in PEM"
                raise ValueError(why) from None
    return context


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """A path where OpenSSL, which reads certificates from nowhere else, finds this text."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("tls"), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield file.name
