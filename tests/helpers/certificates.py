"""Certificates for tests, made by the ``openssl`` program."""

import functools
import subprocess
import tempfile
from pathlib import Path

import skips

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"
ECDSA = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
RSA = ["-newkey", "rsa:2048"]


class Certificates:
    """Files in PEM: ``ca`` is trusted; the others are pairs of a certificate and its key."""

    def __init__(self):
        self._openssl = skips.program("openssl")
        self._directory = tempfile.TemporaryDirectory()
        self._path = Path(self._directory.name)
        self.ca, self._ca_key = self._make("ca", ECDSA, "-addext", "basicConstraints=CA:TRUE")
        self.ecdsa = self._signed("ecdsa", ECDSA, NAMES)
        self.rsa = self._signed("rsa", RSA, NAMES)
        self.client = self._signed("client", ECDSA, "subjectAltName=DNS:client.example")
        self.elsewhere = self._signed("elsewhere", ECDSA, "subjectAltName=DNS:elsewhere.example")
        self.self_signed = self._make("self-signed", ECDSA, "-addext", NAMES)

    def _signed(self, name, key, names):
        return self._make(name, key, "-addext", names, "-CA", self.ca, "-CAkey", self._ca_key)

    def _make(self, name, key, *extra):
        certificate, key_file = self._path / f"{name}.pem", self._path / f"{name}.key"
        command = [self._openssl, "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        command += [*key, "-keyout", key_file, "-out", certificate, *extra]
        subprocess.run(command, check=True, capture_output=True)
        return str(certificate), str(key_file)

    def encrypted_key(self, password):
        """Return the path of a copy of ``ecdsa``'s key that needs a password."""
        path = str(self._path / "encrypted.key")
        command = [self._openssl, "pkey", "-aes256", "-in", self.ecdsa[1], "-out", path]
        subprocess.run([*command, "-passout", f"pass:{password}"], check=True, capture_output=True)
        return path


@functools.cache
def certificates():
    """Return the certificates, which are made once, or skip the test."""
    return Certificates()
