"""Certificates for tests, made by the ``openssl`` program."""

import functools
import itertools
import subprocess
import tempfile
import threading
from pathlib import Path

import skips

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"
ECDSA = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
RSA = ["-newkey", "rsa:2048"]

# The settings of openssl-ca(1), which can choose the dates of a certificate.
AUTHORITY = """
[ca]
default_ca = authority
[authority]
database = {directory}/index
new_certs_dir = {directory}
rand_serial = yes
default_md = sha256
policy = policy
x509_extensions = names
[policy]
commonName = supplied
[names]
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


class Certificates:
    """Files in PEM: ``ca`` is trusted; the others are pairs of a certificate and its key."""

    def __init__(self):
        self._openssl = skips.program("openssl")
        self._directory = tempfile.TemporaryDirectory()
        self._path = Path(self._directory.name)
        self._numbers = itertools.count()
        self.ca, self._ca_key = self._make("ca", ECDSA, "-addext", "basicConstraints=CA:TRUE")
        self.ecdsa = self._signed("ecdsa", ECDSA, NAMES)
        self.rsa = self._signed("rsa", RSA, NAMES)
        self.client = self._signed("client", ECDSA, "subjectAltName=DNS:client.example")
        self.elsewhere = self._signed("elsewhere", ECDSA, "subjectAltName=DNS:elsewhere.example")
        self.expired = self._expired()
        self.self_signed = self._make("self-signed", ECDSA, "-addext", NAMES)

    def _signed(self, name, key, names):
        return self._make(name, key, "-addext", names, "-CA", self.ca, "-CAkey", self._ca_key)

    def _expired(self):
        certificate, request = self._path / "expired.pem", self._path / "expired.csr"
        key_file, config = self._path / "expired.key", self._path / "ca.conf"
        config.write_text(AUTHORITY.format(directory=self._path))
        (self._path / "index").touch()
        subject = ["-subj", "/CN=expired"]
        self._run("req", "-new", "-nodes", *subject, *ECDSA, "-keyout", key_file, "-out", request)
        days = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"]
        signing = ["-in", request, "-cert", self.ca, "-keyfile", self._ca_key, *days]
        self._run("ca", "-batch", "-config", config, "-out", certificate, *signing)
        return str(certificate), str(key_file)

    def _make(self, name, key, *extra):
        certificate, key_file = self._path / f"{name}.pem", self._path / f"{name}.key"
        command = ["req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        self._run(*command, *key, "-keyout", key_file, "-out", certificate, *extra)
        return str(certificate), str(key_file)

    def _run(self, command, *options):
        subprocess.run([self._openssl, command, *options], check=True, capture_output=True)

    def encrypted_key(self, password):
        """Return the path of a copy of ``ecdsa``'s key that needs a password."""
        path = str(self._path / f"encrypted-{next(self._numbers)}.key")
        options = ["-aes256", "-in", self.ecdsa[1], "-out", path]
        self._run("pkey", *options, "-passout", f"pass:{password}")
        return path


_lock = threading.Lock()
_once = functools.cache(Certificates)


def certificates():
    """Return the certificates, which are created only once, or skip the test."""
    # Without the lock, several threads could create certificates at once: a cache does not wait for
    # a call in another thread.
    with _lock:
        return _once()
