"""The exceptions of DTLS, which :mod:`tomada.dtls` exports."""

from __future__ import annotations


class DTLSError(OSError):
    """A session could not be opened, or has ended.

    ``errno`` is ``EPROTO``, unless a subclass has another one.
    """

    __module__ = "tomada.dtls"

    #: OpenSSL's name of the reason, such as ``"no shared cipher"``.
    reason: str = ""


class DTLSCertVerificationError(DTLSError, ValueError):
    """The peer's certificate was not accepted."""

    __module__ = "tomada.dtls"

    #: OpenSSL's number of the reason, ``X509_V_ERR_…``.
    verify_code: int = 0

    #: The reason in words, such as ``"certificate has expired"``.
    verify_message: str = ""


class DTLSWantReadError(DTLSError, BlockingIOError):
    """A non-blocking call has to wait until a datagram arrives."""

    __module__ = "tomada.dtls"


class DTLSZeroReturnError(DTLSError, ConnectionResetError):
    """The session has ended in an orderly way."""

    __module__ = "tomada.dtls"


class DTLSTimeoutError(DTLSError, TimeoutError):
    """The peer did not answer in time."""

    __module__ = "tomada.dtls"
