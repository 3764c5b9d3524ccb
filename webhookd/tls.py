"""What a connection trusts, and what it shows of itself."""

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache


@lru_cache(maxsize=1024)  # a connection is only used again with the very same context, also after a reload
def tls_context(authorities: str = "", certificate: str = "", key: str = "") -> ssl.SSLContext:
    """The TLS of a client; all are PEM texts. Without authorities it trusts those of the system.

    The environment has no say: SSL_CERT_FILE is not trusted, and SSLKEYLOGFILE gets no keys. Raises ValueError, the
    rest of a sentence that begins with the table.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
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
