"""DTLS: encryption for datagrams, with the interface of the :mod:`ssl` module.

A :class:`Context` holds certificates and keys. Pass it as ``dtls=`` to a server, a client or an
endpoint, or wrap a connected socket with :func:`wrap_socket`.
"""

from __future__ import annotations

import contextlib
import enum
import os
import socket as _std
from collections.abc import Callable
from socket import AF_INET, AF_INET6, SOCK_DGRAM
from typing import Any, Self, TypeAlias
from weakref import ref

from tomada import _core
from tomada._address import format_address
from tomada._advice import OF_SECURING
from tomada._dtls_errors import (
    DTLSCertVerificationError,
    DTLSError,
    DTLSTimeoutError,
    DTLSWantReadError,
    DTLSZeroReturnError,
)
from tomada._socket_options import check_dtls
from tomada.socket import socket

if not hasattr(_core, "DtlsContext"):
    _MESSAGE = (
        "this build of tomada does not include DTLS: it was built with TOMADA_DTLS=no; "
        "install a wheel, or build it again without that setting"
    )
    raise ImportError(_MESSAGE, name="tomada.dtls")

from tomada._core import OPENSSL_VERSION, OPENSSL_VERSION_NUMBER, DtlsContext, DtlsEndpoint
from tomada._core import DtlsSession as Session

_OLDEST = 0x30000000
if OPENSSL_VERSION_NUMBER < _OLDEST:
    _MESSAGE = (
        f"tomada.dtls needs OpenSSL 3.0 or newer, not {OPENSSL_VERSION}: "
        "install a wheel, which contains its own, or upgrade the system's OpenSSL and build again"
    )
    raise ImportError(_MESSAGE, name="tomada.dtls")

__all__ = [
    "CERT_NONE",
    "CERT_OPTIONAL",
    "CERT_REQUIRED",
    "OPENSSL_VERSION",
    "OPENSSL_VERSION_NUMBER",
    "PROTOCOL_DTLS_CLIENT",
    "PROTOCOL_DTLS_SERVER",
    "Context",
    "DTLSCertVerificationError",
    "DTLSError",
    "DTLSSocket",
    "DTLSTimeoutError",
    "DTLSVersion",
    "DTLSWantReadError",
    "DTLSZeroReturnError",
    "Handshake",
    "Protocol",
    "Session",
    "VerifyMode",
    "create_default_context",
    "wrap_socket",
]


class Protocol(enum.IntEnum):
    """Which side of a session a context is for."""

    #: The side that begins sessions.
    PROTOCOL_DTLS_CLIENT = 1
    #: The side that accepts sessions.
    PROTOCOL_DTLS_SERVER = 2


class VerifyMode(enum.IntEnum):
    """Whether the peer's certificate is verified. The values are the same as in :mod:`ssl`."""

    #: The peer's certificate is not verified; a server does not ask for one.
    CERT_NONE = 0
    #: A server asks for a certificate, and verifies the one that the client sends, if any.
    CERT_OPTIONAL = 1
    #: The handshake fails without a valid certificate.
    CERT_REQUIRED = 2


class DTLSVersion(enum.IntEnum):
    """A version of the protocol, with its number in records. DTLS 1.3 is not supported."""

    #: DTLS 1.0 (:rfc:`4347`).
    DTLSv1 = 0xFEFF
    #: DTLS 1.2 (:rfc:`6347`).
    DTLSv1_2 = 0xFEFD


PROTOCOL_DTLS_CLIENT = Protocol.PROTOCOL_DTLS_CLIENT
PROTOCOL_DTLS_SERVER = Protocol.PROTOCOL_DTLS_SERVER
CERT_NONE = VerifyMode.CERT_NONE
CERT_OPTIONAL = VerifyMode.CERT_OPTIONAL
CERT_REQUIRED = VerifyMode.CERT_REQUIRED


class Handshake:
    """A session that a client is beginning: the first argument of :attr:`Context.sni_callback`."""

    __slots__ = ("_context", "server_name")

    def __init__(self, context: Context, server_name: str | None) -> None:
        self._context = context
        #: The name that the client asks for, or ``None``.
        self.server_name = server_name

    @property
    def context(self) -> Context:
        """The session's context: set it to another server-side context to use its certificates.

        The session takes the certificate, the trusted issuers, ``verify_mode``, the ciphers and the
        ALPN protocols from the new context. Pre-shared keys, versions and sizes still come from the
        original one.
        """
        return self._context

    @context.setter
    def context(self, context: Context) -> None:
        if not isinstance(context, Context):
            message = f"context must be a tomada.dtls.Context, not {context!r}"
            raise TypeError(message)
        self._context = context


class Context(DtlsContext):
    """The certificates, keys and settings for any number of sessions.

    ``Context(PROTOCOL_DTLS_CLIENT)`` verifies the server's certificate and its host name;
    ``Context(PROTOCOL_DTLS_SERVER)`` does not ask clients for a certificate. Changes apply to
    sessions that begin later. Several threads and sockets may share a context.

    :param protocol: Which side the context is for.
    """

    __slots__ = ("__weakref__", "_sni_callback", "protocol")

    protocol: Protocol
    _sni_callback: SNICallback | None

    def __new__(cls, protocol: Protocol) -> Self:
        """Create a context."""
        protocol = Protocol(protocol)
        self = super().__new__(cls, protocol is PROTOCOL_DTLS_SERVER)
        self.protocol = protocol
        self._sni_callback = None
        return self

    @property
    def verify_mode(self) -> VerifyMode:
        """Whether the peer's certificate is verified.

        By default, a client requires a certificate, and a server does not ask for one.

        :raises ValueError: ``CERT_NONE`` is set while ``check_hostname`` is true.
        """
        return VerifyMode(self._verify)

    @verify_mode.setter
    def verify_mode(self, mode: VerifyMode) -> None:
        self._verify = VerifyMode(mode)

    @property
    def minimum_version(self) -> DTLSVersion:
        """The lowest acceptable version: DTLS 1.2 by default.

        :raises ValueError: The value is higher than ``maximum_version``.
        """
        return DTLSVersion(self._minimum)

    @minimum_version.setter
    def minimum_version(self, version: DTLSVersion) -> None:
        self._minimum = DTLSVersion(version)

    @property
    def maximum_version(self) -> DTLSVersion:
        """The highest acceptable version: DTLS 1.2 by default.

        DTLS 1.3 is not supported, even if OpenSSL supports it: its first messages differ, and a
        server could not answer them without storing state for addresses that may be forged.

        :raises ValueError: The value is lower than ``minimum_version``.
        """
        return DTLSVersion(self._maximum)

    @maximum_version.setter
    def maximum_version(self, version: DTLSVersion) -> None:
        self._maximum = DTLSVersion(version)

    @property
    def sni_callback(self) -> SNICallback | None:
        """A function that chooses a session's context by the name that the client asks for.

        As with :attr:`ssl.SSLContext.sni_callback`, it is called with the session that is beginning
        (a :class:`Handshake`), the name or ``None``, and this context. It may set the ``context``
        of the first argument. It returns ``None``, or the number of an alert that ends the
        handshake, such as :data:`ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME`: 40, 49, 71, 80, 90 or
        112. If it raises an exception, the handshake fails, and :func:`sys.unraisablehook` reports
        the exception.

        A server with an ``sni_callback`` does not resume sessions, because a resumed session would
        evade the checks of the chosen context.

        :raises TypeError: The value is neither a function nor ``None``.
        :raises ValueError: It is set on a client's context.
        """
        return self._sni_callback

    @sni_callback.setter
    def sni_callback(self, callback: SNICallback | None) -> None:
        if self.protocol is not PROTOCOL_DTLS_SERVER:
            message = "sni_callback cannot be set on a context of PROTOCOL_DTLS_CLIENT"
            raise ValueError(message)
        if callback is None:
            self._choose_by_name(None)
        elif callable(callback):
            self._choose_by_name(_chooser(callback, self))
        else:
            message = "not a callable object"
            raise TypeError(message)
        self._sni_callback = callback

    def load_default_certs(self) -> None:
        """Trust the certificates that the system trusts."""
        self.set_default_verify_paths()

    def wrap_socket(
        self,
        sock: _std.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        server_hostname: str | None = None,
    ) -> DTLSSocket:
        """Return a socket whose datagrams are encrypted: see :func:`tomada.dtls.wrap_socket`."""
        return wrap_socket(
            sock,
            self,
            server_side=server_side,
            do_handshake_on_connect=do_handshake_on_connect,
            server_hostname=server_hostname,
        )


#: The type of :attr:`Context.sni_callback`.
SNICallback: TypeAlias = Callable[[Handshake, str | None, Context], int | None]


def _chooser(callback: SNICallback, first: Context) -> Callable[[str | None], Context | int | None]:
    """Return the function that the core calls."""
    weak = ref(first)  # the context refers to it

    def choose(name: str | None) -> Context | int | None:
        context = weak()
        if context is None:
            return None  # nobody has the context any more
        handshake = Handshake(context, name)
        alert = callback(handshake, name, context)
        if alert is not None:
            return alert
        return None if handshake.context is context else handshake.context

    return choose


def create_default_context(
    protocol: Protocol = PROTOCOL_DTLS_CLIENT,
    *,
    cafile: str | os.PathLike[str] | None = None,
    capath: str | os.PathLike[str] | None = None,
    cadata: str | bytes | None = None,
) -> Context:
    """Return a context with safe settings.

    A client's context verifies the server's certificate and its host name, against the given
    certificates or, by default, against those that the system trusts.

    :param protocol: Which side the context is for.
    :param cafile: A PEM file with certificates to trust.
    :param capath: A directory of PEM files.
    :param cadata: Certificates to trust, in PEM or DER.
    :raises OSError: A file cannot be read.
    """
    context = Context(protocol)
    if cafile is not None or capath is not None or cadata is not None:
        context.load_verify_locations(cafile, capath, cadata)
    elif context.verify_mode is not CERT_NONE:
        context.load_default_certs()
    return context


class DTLSSocket(socket):
    """A connected datagram socket with a session.

    It has the methods of :class:`tomada.socket.socket`. It encrypts the datagrams that it sends,
    and receives only from the session's peer. Once the peer has ended the session, ``recv`` returns
    ``b""``.

    Create it with :func:`wrap_socket`.
    """

    __module__ = "tomada.dtls"
    __slots__ = ("_endpoint", "context", "server_hostname", "server_side")

    _endpoint: DtlsEndpoint | None
    #: The context that the socket was wrapped with.
    context: Context
    #: Whether this side waits for the peer to begin the session.
    server_side: bool
    #: The name or address that the server's certificate must be for.
    server_hostname: str | None

    def __init__(self, *_args: object, **_options: object) -> None:
        message = "DTLSSocket has no public constructor: use wrap_socket()"
        raise TypeError(message)

    @classmethod
    def _of(cls, sock: _std.socket) -> Self:
        """Return a socket that takes over another one's descriptor, and has no session yet."""
        self = cls.__new__(cls, sock.family, sock.type, sock.proto)
        self._endpoint = None
        socket.__init__(self, sock.family, sock.type, sock.proto, sock.detach())
        return self

    def _attach(self, context: Context, server_side: bool, server_hostname: str | None) -> None:
        self._endpoint = DtlsEndpoint(
            context, self, server_hostname=server_hostname, on_end="empty"
        )
        self.context = context
        self.server_side = server_side
        self.server_hostname = server_hostname
        if not server_side:
            self._endpoint.begin()

    def _session(self) -> Session | None:
        return None if self._endpoint is None else self._endpoint.session()

    def do_handshake(self) -> None:
        """Complete the handshake.

        The socket's timeout limits the wait. A failed handshake cannot be repeated.

        :raises DTLSWantReadError: The socket is non-blocking. Call this again when it is readable,
            or after :meth:`handshake_timeout` seconds.
        :raises DTLSCertVerificationError: The peer's certificate was not accepted.
        :raises DTLSError: The handshake failed.
        :raises TimeoutError: The peer did not answer in time.
        :raises ConnectionRefusedError: There is no server.
        """
        if self._endpoint is None:
            message = "the socket has no session: use wrap_socket()"
            raise ValueError(message)
        timeout = self.gettimeout()
        try:
            self._endpoint.handshake(timeout)
        except TimeoutError as error:
            if isinstance(error, DTLSError) or timeout is None:
                raise
            peer = format_address(self.getpeername())
            message = (
                f"timed out: the handshake with {peer} was not complete after {timeout:g} s; the "
                f"peer {OF_SECURING}"
            )
            raise TimeoutError(message) from None

    def handshake_timeout(self) -> float | None:
        """Return the seconds until a non-blocking handshake must be continued, or ``None``.

        This also retransmits messages that the peer has not answered in time.
        """
        return None if self._endpoint is None else self._endpoint.tick()

    def dup(self) -> Self:
        """Raise :class:`NotImplementedError`: a duplicate would send plaintext."""
        message = "Can't dup() DTLSSocket instances"
        raise NotImplementedError(message)

    def unwrap(self) -> socket:
        """End the session, notify the peer, and return a socket without encryption.

        This object is then closed; the returned socket takes over its descriptor.
        """
        if self._endpoint is not None:
            self._endpoint.close()
        timeout = self.gettimeout()
        plain = socket(self.family, self.type, self.proto, self.detach())
        plain.settimeout(timeout)
        return plain

    def close(self) -> None:
        """End the session, notify the peer, and close the socket."""
        if self._endpoint is not None and self._io_refs <= 0:
            with contextlib.suppress(OSError):
                self._endpoint.close()
        super().close()

    def version(self) -> str | None:
        """Return the version, such as ``"DTLSv1.2"``, or ``None`` if there is no session yet."""
        session = self._session()
        return None if session is None else session.version()

    def cipher(self) -> tuple[str, str, int] | None:
        """Return the cipher's name, its version and its strength in bits, or ``None``."""
        session = self._session()
        return None if session is None else session.cipher()

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """Return the peer's certificate, or ``None`` if the peer has not sent one.

        :param binary_form: Return the certificate in DER form, even if it was not verified.
            Otherwise, the result is a dict, as from :meth:`ssl.SSLSocket.getpeercert`, which is
            empty if the certificate was not verified.
        :raises ValueError: The handshake is not complete.
        """
        session = self._session()
        if session is None:
            message = "handshake not done yet"
            raise ValueError(message)
        return session.getpeercert(binary_form)

    def selected_alpn_protocol(self) -> str | None:
        """Return the application protocol that both sides support, or ``None``."""
        session = self._session()
        return None if session is None else session.selected_alpn_protocol()

    def selected_srtp_profile(self) -> str | None:
        """Return the SRTP profile that both sides support, or ``None``."""
        session = self._session()
        return None if session is None else session.selected_srtp_profile()

    @property
    def session(self) -> Session | None:
        """The session, or ``None`` if the handshake is not complete."""
        return self._session()


def wrap_socket(
    sock: _std.socket,
    context: Context,
    *,
    server_side: bool = False,
    do_handshake_on_connect: bool = True,
    server_hostname: str | None = None,
) -> DTLSSocket:
    """Return a socket that encrypts the datagrams of a connected socket.

    As with :meth:`ssl.SSLContext.wrap_socket`, this detaches the given socket, and the returned one
    takes over its descriptor.

    :param sock: An IP datagram socket that is connected to the peer.
    :param context: The settings, for the side that ``server_side`` selects.
    :param server_side: Whether this is the server's side; the peer then begins the handshake.
    :param do_handshake_on_connect: Whether to complete the handshake before this returns. The
        socket's timeout limits how long that takes. A non-blocking socket needs ``False``.
    :param server_hostname: The host name or address that the server's certificate must match.
    :raises DTLSError: As in :meth:`DTLSSocket.do_handshake`. The socket is closed.
    :raises ValueError: The socket is not connected, or the context is for the other side.
    """
    check_dtls(context, is_server=server_side)
    if sock.family not in {AF_INET, AF_INET6} or sock.type != SOCK_DGRAM:
        message = "DTLS needs a datagram socket of AF_INET or AF_INET6"
        raise ValueError(message)
    timeout = sock.gettimeout()
    if do_handshake_on_connect and timeout == 0:
        message = "do_handshake_on_connect should not be specified for non-blocking sockets"
        raise ValueError(message)
    try:
        sock.getpeername()
    except OSError:
        message = "wrap_socket() needs a connected socket: call connect() first"
        raise ValueError(message) from None
    wrapped = DTLSSocket._of(sock)  # noqa: SLF001 - these modules are one
    try:
        wrapped.settimeout(timeout)
        wrapped._attach(context, server_side, server_hostname)  # noqa: SLF001 - as above
        if do_handshake_on_connect:
            wrapped.do_handshake()
    except BaseException:
        wrapped.close()
        raise
    return wrapped
