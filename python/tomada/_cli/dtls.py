"""The options for DTLS of all commands, and the contexts that they describe."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomada._address import format_address
from tomada._cli.common import CommandError, UsageError
from tomada._config import PATH, SWITCH, Option, Settings, resolve, text
from tomada._dtls_errors import DTLSError

if TYPE_CHECKING:
    from types import ModuleType
    from typing import TypeAlias

    from tomada.dtls import Context
    from tomada.socket import socket

    # The context of a client's sessions, and the name that the server must have.
    Secured: TypeAlias = tuple[Context, str | None]

DTLS = "DTLS"
# The shortest key that a server accepts, in bytes: shorter ones can be guessed from a recorded
# handshake.
SHORTEST_KEY = 16
# The library's errors name its functions. These are the options that do the same.
IN_OPTIONS = {
    "pass the issuer to load_verify_locations()": "pass the issuer as --dtls-ca",
    "pass the name in the certificate as server_hostname": (
        "pass the name in the certificate as --dtls-server-hostname"
    ),
    "is encrypted: pass its password": (
        "is encrypted: decrypt the file, for example with openssl pkey, because the command line "
        "does not accept passwords"
    ),
}

_KEY = Option(
    "dtls-key",
    PATH,
    DTLS,
    "the private key of the certificate (PEM)",
    "the one in --dtls-cert",
    into="dtls",
    parameter="keyfile",
)

#: The options of a server.
SERVER_DTLS = (
    Option(
        "dtls-cert",
        PATH,
        DTLS,
        "encrypt with this certificate chain (PEM)",
        into="dtls",
        parameter="certfile",
    ),
    _KEY,
    Option(
        "dtls-ca",
        PATH,
        DTLS,
        "require certificates from clients, issued by these authorities (PEM)",
        into="dtls",
        parameter="cafile",
    ),
    Option(
        "dtls-psk-file",
        PATH,
        DTLS,
        "accept clients with the pre-shared keys in this file, whose lines are IDENTITY:HEXKEY",
        into="dtls",
        parameter="pskfile",
    ),
)

#: The options of a client. Each of them turns on encryption.
CLIENT_DTLS = (
    Option(
        "dtls",
        SWITCH,
        DTLS,
        "encrypt, and verify the server's certificate; each option below implies this",
        into="dtls",
    ),
    Option(
        "dtls-ca",
        PATH,
        DTLS,
        "trust certificates issued by these authorities (PEM)",
        "those that the system trusts",
        into="dtls",
        parameter="cafile",
    ),
    Option(
        "dtls-server-hostname",
        text("a host name or an address", "NAME"),
        DTLS,
        "the name that the server's certificate must match",
        "the host in the address",
        into="dtls",
        parameter="server_hostname",
    ),
    Option(
        "dtls-cert",
        PATH,
        DTLS,
        "identify the client by this certificate chain (PEM)",
        into="dtls",
        parameter="certfile",
    ),
    _KEY,
    Option(
        "dtls-psk-file",
        PATH,
        DTLS,
        "use the pre-shared key in this file, whose lines are IDENTITY:HEXKEY",
        into="dtls",
        parameter="pskfile",
    ),
    Option(
        "dtls-psk-identity",
        text("an identity", "IDENTITY"),
        DTLS,
        "which key in the file to use",
        "the only one",
        into="dtls",
        parameter="identity",
    ),
)


def server_context(settings: Settings) -> Context | None:
    """Return the context of a server, or ``None`` if it does not encrypt."""
    options = settings.of(SERVER_DTLS, "dtls")
    if not options:
        return None
    _check_needs(settings, {"dtls-key": "dtls-cert", "dtls-ca": "dtls-cert"})
    dtls = _imported(settings, SERVER_DTLS)
    context: Context = dtls.Context(dtls.PROTOCOL_DTLS_SERVER)
    _load_certificate(context, settings, options)
    if "cafile" in options:
        with _read_for("dtls-ca", settings):
            context.load_verify_locations(options["cafile"])
        context.verify_mode = dtls.CERT_REQUIRED
    if "pskfile" in options:
        with _read_for("dtls-psk-file", settings):
            context.set_psk_server_callback(keys_in(options["pskfile"], SHORTEST_KEY).get)
    return context


def client_context(arguments: argparse.Namespace) -> Secured | None:
    """Return a client's context and its server's name, or ``None`` if it does not encrypt."""
    settings = resolve(CLIENT_DTLS, vars(arguments), {})
    options = settings.of(CLIENT_DTLS, "dtls")
    if not options:
        return None
    _check_needs(settings, {"dtls-key": "dtls-cert", "dtls-psk-identity": "dtls-psk-file"})
    if not isinstance(arguments.address, tuple):
        raise UsageError("DTLS needs the address of a server as HOST:PORT")
    dtls = _imported(settings, CLIENT_DTLS)
    context = dtls.Context(dtls.PROTOCOL_DTLS_CLIENT)
    if "cafile" in options:
        with _read_for("dtls-ca", settings):
            context.load_verify_locations(options["cafile"])
    elif "pskfile" not in options:
        context.load_default_certs()
    _load_certificate(context, settings, options)
    if "pskfile" in options:
        with _read_for("dtls-psk-file", settings):
            key = _key_in(options["pskfile"], options.get("identity"))
        context.set_psk_client_callback(lambda _hint: key)
    return context, options.get("server_hostname", arguments.address[0])


def secure(sock: socket, secured: Secured | None, timeout: float) -> socket:
    """Wrap a connected socket in a new session; without encryption, return the socket itself.

    :param timeout: How long the handshake may take, in seconds.
    """
    if secured is None:
        return sock
    from tomada.dtls import wrap_socket

    context, name = secured
    where = format_address(sock.getpeername())
    sock.settimeout(timeout)
    try:
        with naming_options():
            return wrap_socket(sock, context, server_hostname=name)
    except ConnectionRefusedError:
        raise CommandError(f"no program is listening on {where}") from None


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """Name options, not functions, in the error of a session that cannot be opened."""
    try:
        yield
    except DTLSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise CommandError(_in_options(error)) from None


def _in_options(error: Exception) -> str:
    """Return an error's text with the names of options instead of functions."""
    text = str(error)
    for function, option in IN_OPTIONS.items():
        text = text.replace(function, option)
    return text


def _check_needs(settings: Settings, needs: dict[str, str]) -> None:
    for name, other in needs.items():
        if settings.get(name) and not settings.get(other):
            raise UsageError(f"{name} needs {other} ({settings.source(name)})")


def _imported(settings: Settings, options: Iterable[Option]) -> ModuleType:
    """Import ``tomada.dtls``; if the build lacks it, name the option that needs it."""
    try:
        from tomada import dtls
    except ImportError as error:
        name = next(option.name for option in options if option.name in settings.by_name)
        raise UsageError(f"{name}: {error} ({settings.source(name)})") from None
    return dtls


def _load_certificate(context: Context, settings: Settings, options: dict[str, Any]) -> None:
    if "certfile" in options:
        key = options.get("keyfile")
        with _read_for("dtls-cert", settings, {"dtls-key": key} if key else {}):
            context.load_cert_chain(options["certfile"], key)


@contextlib.contextmanager
def _read_for(
    name: str, settings: Settings, others: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Name the option in the error if its file cannot be used.

    :param others: The files of other options, which the error may be about instead.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        text = _in_options(error)
        named = [other for other, path in (others or {}).items() if path in text]
        name = next(iter(named), name)
        raise UsageError(f"{name}: {text} ({settings.source(name)})") from None


def keys_in(path: str, shortest: int = 1) -> dict[str, bytes]:
    """Read pre-shared keys by identity, in the format of GnuTLS's ``psktool``.

    An identity that begins with ``#`` is in hexadecimal, so the file cannot contain comments.

    :param shortest: The minimum length of a key, in bytes.
    :raises OSError: The file cannot be read.
    :raises ValueError: The file has no keys, a line has another format, an identity occurs twice,
        or a key is too short.
    """
    keys: dict[str, bytes] = {}
    lines: dict[str, int] = {}
    with Path(path).open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            identity, colon, digits = line.rstrip("\r\n").rpartition(":")
            try:
                key = bytes.fromhex(digits)
                if identity.startswith("#"):
                    identity = bytes.fromhex(identity[1:]).decode("utf-8", "surrogateescape")
            except ValueError:
                key = b""
            if not (colon and key):
                raise ValueError(f"line {number} of {path} is not IDENTITY:HEXKEY")
            if identity in keys:
                raise ValueError(
                    f"line {number} of {path} has the same identity as line {lines[identity]}: "
                    "delete one of them"
                )
            if len(key) < shortest:
                raise ValueError(
                    f"the key in line {number} of {path} has {len(key)} bytes: use at least "
                    f"{shortest} random bytes, for example from openssl rand -hex {shortest}"
                )
            keys[identity], lines[identity] = key, number
    if not keys:
        raise ValueError(f"{path} has no keys: write one on each line, as IDENTITY:HEXKEY")
    return keys


def _key_in(path: str, identity: str | None) -> tuple[str, bytes]:
    """Return the identity and the key to use.

    :raises ValueError: There is no such key, or there are several to choose from.
    """
    keys = keys_in(path)
    if identity is None and len(keys) > 1:
        raise ValueError(f"{path} has {len(keys)} keys: choose one with --dtls-psk-identity")
    if identity not in {None, *keys}:
        raise ValueError(f"{path} has no key for {identity!r}")
    identity = identity or next(iter(keys))
    return identity, keys[identity]
