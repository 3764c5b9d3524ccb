"""TLS as no library speaks it: what a hostile server sends, made by hand."""

import asyncio
import hmac
import ssl
import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")  # RFC 8446 4.1.3
FFDHE8192, P256 = 0x104, 23
HANDSHAKE, ALERT = 22, 21
KEY_UPDATE = b"\x18\x00\x00\x01\x01"  # that wants an answer
UNRECOGNIZED_NAME = b"\x01\x70"  # a warning


def record(kind: int, content: bytes) -> bytes:
    """A record in clear."""
    return struct.pack(">BHH", kind, 0x303, len(content)) + content


def retry(hello: bytes, group: int) -> bytes:
    """The message that asks whoever said this hello, a record, to begin again with this group."""
    session = hello[44 : 44 + hello[43]]
    extensions = struct.pack(">HHHHHH", 43, 2, 0x304, 51, 2, group)
    rest = b"\x03\x03" + RETRY + bytes([len(session)]) + session + b"\x13\x02\x00"
    rest += struct.pack(">H", len(extensions)) + extensions
    return b"\x02" + len(rest).to_bytes(3) + rest


class Spoken:
    """A server's side of TLS 1.3 behind the handshake, of the cipher TLS_AES_256_GCM_SHA384."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._number = 0

    def says(self, content: bytes, kind: int) -> bytes:
        """The record with this content."""
        key, iv = self._derived(b"key", 32), self._derived(b"iv", 12)
        nonce = (int.from_bytes(iv) ^ self._number).to_bytes(12)
        self._number += 1
        head = struct.pack(">BHH", 23, 0x303, len(content) + 17)
        return head + AESGCM(key).encrypt(nonce, content + bytes([kind]), head)

    def key_update(self) -> bytes:
        """The record that changes the key."""
        said = self.says(KEY_UPDATE, HANDSHAKE)
        self._secret, self._number = self._derived(b"traffic upd", 48), 0
        return said

    def _derived(self, label: bytes, length: int) -> bytes:  # RFC 8446 7.1; one block of the hash is enough
        info = struct.pack(">HB", length, 6 + len(label)) + b"tls13 " + label + b"\x00"
        return hmac.digest(self._secret, info + b"\x01", "sha384")[:length]


async def next_record(reader: asyncio.StreamReader) -> bytes:
    """The next record that comes."""
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[3:]))


async def agreed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext, keys: Path
) -> Spoken:
    """Shake hands as a server with this context, whose secrets go to the file `keys`."""
    context.keylog_filename, context.num_tickets = str(keys), 0
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_side=True)
    while True:
        try:
            connection.do_handshake()
            break
        except ssl.SSLWantReadError:
            if outgoing.pending:
                writer.write(outgoing.read())
            incoming.write(await next_record(reader))
    assert connection.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
    lines = [line.split() for line in (await asyncio.to_thread(keys.read_text)).splitlines()]
    return Spoken(bytes.fromhex([line[2] for line in lines if line[0] == "SERVER_TRAFFIC_SECRET_0"][-1]))
