"""What is said of certificates that cannot be used; integration/egress/test_sender.py connects with those that can."""

import ssl

import pytest

from tests.certificates import self_signed
from webhookd.egress.tls import tls_context

WRONG = "certificate_file and key_file are not a certificate and its key, unencrypted, in PEM"


def test_the_same_texts_are_the_same_context() -> None:
    """Or a reload would end every connection that is kept."""
    certificate, key = self_signed()
    assert tls_context(certificate, certificate, key) is tls_context(certificate, certificate, key)
    assert tls_context() is tls_context()
    assert tls_context(certificate) is not tls_context()


def test_certificate_and_key_may_be_one_text() -> None:
    certificate, key = self_signed()
    assert tls_context("", certificate + key)
    assert tls_context("", key + certificate)


@pytest.mark.parametrize(
    "text", ["fake", "-----BEGIN CERTIFICATE-----\nfake\n-----END CERTIFICATE-----", self_signed()[1]]
)
def test_what_is_no_authority(text: str) -> None:
    with pytest.raises(ValueError, match=r"^ca_file holds no certificate in PEM$"):
        tls_context(text)


def test_a_key_of_another_certificate() -> None:
    with pytest.raises(ValueError, match=f"^{WRONG}$"):
        tls_context("", self_signed()[0], self_signed()[1])


def test_a_certificate_without_a_key() -> None:
    with pytest.raises(ValueError, match=f"^{WRONG}$"):
        tls_context("", self_signed()[0])


def test_an_encrypted_key_is_refused_and_nobody_is_asked() -> None:
    with pytest.raises(ValueError, match=f"^{WRONG}$"):
        tls_context("", *self_signed(password=b"fake"))


def test_what_is_offered() -> None:
    """ECDHE, and nothing in which the server says how large a number is; a context of one's own offers no more."""
    certificate, key = self_signed()
    for context in (tls_context(), tls_context(certificate), tls_context(certificate, certificate, key)):
        ciphers = {each["name"] for each in context.get_ciphers()}
        assert {each for each in ciphers if not each.startswith(("TLS_", "ECDHE-"))} == set()
        assert {"TLS_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-SHA384"} <= ciphers
        assert not any(each.endswith("SHA") for each in ciphers), "none with SHA-1"
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.maximum_version is ssl.TLSVersion.MAXIMUM_SUPPORTED
        assert ssl.OP_NO_RENEGOTIATION in context.options
        assert ssl.OP_NO_COMPRESSION in context.options
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
