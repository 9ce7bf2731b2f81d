"""Certificates of a test run: an authority, a server on the loopback interface, and a client, as PEM files."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Paths of PEM files. `server` holds a key and its certificate in one file."""

    ca: Path
    other_ca: Path  # which has signed nothing
    server: Path
    client_cert: Path
    client_key: Path


def make_certificates(folder: Path) -> Certificates:
    """New ones, in the new folder `folder`."""
    folder.mkdir(parents=True)
    authority, other = _Authority("tests"), _Authority("others")
    server_key, server = authority.issue("127.0.0.1", ExtendedKeyUsageOID.SERVER_AUTH)
    client_key, client = authority.issue("client", ExtendedKeyUsageOID.CLIENT_AUTH)
    files = {
        "ca": authority.pem,
        "other_ca": other.pem,
        "server": server_key + server,
        "client_cert": client,
        "client_key": client_key,
    }
    paths = {name: folder / f"{name}.pem" for name in files}
    for name, path in paths.items():
        path.write_bytes(files[name])
    return Certificates(**paths)


class _Authority:
    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        self.pem = _pem(builder.sign(self._key, hashes.SHA256()))

    def issue(self, name: str, use: x509.ObjectIdentifier) -> tuple[bytes, bytes]:
        """A key and its certificate, for `use` by whoever is at 127.0.0.1 or localhost."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        builder = (
            self._builder(_named(name), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        )
        # Kafka reads keys as PKCS#8 only
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return secret, _pem(builder.sign(self._key, hashes.SHA256()))

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + 30 * _DAY)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
