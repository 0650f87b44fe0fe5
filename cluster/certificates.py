"""Make the certificates of a Ray cluster whose nodes speak TLS.

    python cluster/certificates.py authority certificates
    python cluster/certificates.py node certificates 10.0.0.11

The first makes ca.crt and ca.key, once for a cluster; the second, wherever those two lie, tls.crt
and tls.key for a node with these addresses or names. Only ca.crt, tls.crt and tls.key go to nodes:
whoever has ca.key can join. Whoever has a node's tls.key can join too.
"""

import argparse
import datetime
import os
import sys
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS, NODE_DAYS = 365, 90


def main() -> int:
    """Make what the command line asks for, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("authority", "node"):
        kinds.add_parser(kind).add_argument("folder", type=Path)
    kinds.choices["node"].add_argument("address", nargs="+", help="by which others reach the node")
    arguments = parser.parse_args()
    try:
        if arguments.kind == "authority":
            make_authority(arguments.folder)
        else:
            make_node(arguments.folder, arguments.address)
    except (FileExistsError, FileNotFoundError) as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def make_authority(folder: Path) -> None:
    """Write ca.crt and ca.key; an authority that exists is kept, and FileExistsError raised."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mmray")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        unsigned(name, name, key.public_key(), key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    write(folder / "ca.key", key, "x")
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def make_node(folder: Path, addresses: list[str]) -> None:
    """Write tls.crt and tls.key, signed by the authority of the folder."""
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, addresses[0][:64])])
    # A node asks as well as answers, and its own processes call it 127.0.0.1 too.
    usage = x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    names = [named(address) for address in dict.fromkeys([*addresses, "127.0.0.1", "localhost"])]
    certificate = (
        unsigned(name, authority.subject, key.public_key(), signer.public_key(), NODE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signer, hashes.SHA256())
    )
    write(folder / "tls.key", key, "w")
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def unsigned(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    """Begin a certificate that is valid from now on; clocks may differ by an hour."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def named(address: str) -> x509.GeneralName:
    """Return an address or a name of a node as certificates have it."""
    try:
        return x509.IPAddress(ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def write(path: Path, key: ec.EllipticCurvePrivateKey, mode: str) -> None:
    """Write a private key for its owner alone."""
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    content = key.private_bytes(pem, pkcs8, serialization.NoEncryption())
    flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if mode == "x" else os.O_TRUNC)
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)


if __name__ == "__main__":
    sys.exit(main())
