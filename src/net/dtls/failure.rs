//! Why a session could not begin, or has ended.

use std::error::Error;
use std::fmt;
use std::io;

use openssl::error::ErrorStack;
use openssl::ssl::{self, ErrorCode, SslRef};
use openssl::x509::X509VerifyResult;

/// The kind of a [`SessionError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionErrorKind {
    /// The peer's certificate was not accepted; the code of `X509_V_ERR_…`.
    Certificate(i32),
    /// The two sides do not agree, or the peer has sent an alert.
    Protocol,
    /// The peer did not answer in time.
    TimedOut,
    /// The peer has ended the session with `close_notify`.
    Closed,
    /// There is no session.
    NoSession,
    /// A datagram is too long for a record.
    TooLong,
    /// A datagram is empty, which a record cannot be.
    Empty,
    /// The session was not in use for long, or made room for others.
    Evicted,
}

/// Why a session could not begin, has ended, or cannot carry a datagram.
#[derive(Clone, Debug)]
pub struct SessionError {
    /// The kind of failure.
    pub kind: SessionErrorKind,
    /// OpenSSL's name of the reason, such as `no shared cipher` or `certificate has expired`.
    pub reason: String,
    /// The failure in words, and its cure.
    pub text: String,
}

/// The cures of some of OpenSSL's reasons.
const ADVICE: [(&str, &str); 9] = [
    ("no shared cipher", "the two sides have no cipher in common that fits the certificate or key"),
    ("no ciphers available", "set_ciphers() excludes every cipher that versions and keys allow"),
    ("unsupported protocol", "the two sides have no version in common"),
    ("handshake failure", "the peer found no cipher in common, or requires a certificate"),
    ("peer did not return a certificate", "the client must call load_cert_chain()"),
    ("unknown ca", "the peer does not trust the issuer of this side's certificate"),
    ("unknown psk identity", "the server has no key for the identity that the client sent"),
    ("psk identity not found", "the callback for pre-shared keys returned no key, or failed"),
    ("decryption failed or bad record mac", "the pre-shared keys of the two sides may differ"),
];

/// The cures of some failures of certificates, by the numbers of `X509_V_ERR_…`.
const CERTIFICATE_ADVICE: [(&[i32], &str); 4] = [
    (&[9], "it becomes valid later, or the clock of this machine is wrong"),
    (&[10], "it must be renewed, or the clock of this machine is wrong"),
    (&[18, 19, 20, 21], "if you trust its issuer, pass the issuer to load_verify_locations()"),
    (&[62, 64], "pass the name in the certificate as server_hostname"),
];

impl SessionError {
    /// A failure with a reason of this crate's own.
    pub(super) fn new(kind: SessionErrorKind, reason: &str) -> Self {
        Self { kind, reason: reason.to_owned(), text: reason.to_owned() }
    }

    /// The failure of an operation that needs a session, with a peer that has none.
    pub fn no_session() -> Self {
        Self::new(SessionErrorKind::NoSession, "there is no DTLS session with this peer")
    }

    /// The failure of an operation on a session of the process that this one was forked from.
    pub fn of_parent() -> Self {
        let text = "a forked child does not have its parent's DTLS sessions";
        Self::new(SessionErrorKind::NoSession, text)
    }

    /// Converts an error of OpenSSL.
    pub(super) fn of(ssl: &SslRef, error: &ssl::Error) -> Self {
        let verified = ssl.verify_result();
        if error.code() == ErrorCode::ZERO_RETURN {
            return Self::new(SessionErrorKind::Closed, "the peer has closed the session");
        }
        let mut failure = Self::of_stack(error.ssl_error());
        if verified != X509VerifyResult::OK && failure.reason == "certificate verify failed" {
            failure.kind = SessionErrorKind::Certificate(verified.as_raw());
            failure.text = format!("certificate verify failed: {}", verified.error_string());
            let code = verified.as_raw();
            if let Some((_, advice)) =
                CERTIFICATE_ADVICE.iter().find(|(codes, _)| codes.contains(&code))
            {
                failure.text = format!("{}: {advice}", failure.text);
            }
            verified.error_string().clone_into(&mut failure.reason);
        }
        failure
    }

    /// Converts an error of OpenSSL that does not belong to a session.
    pub(super) fn of_stack(stack: Option<&ErrorStack>) -> Self {
        let reason =
            stack.and_then(|stack| stack.errors().iter().find_map(openssl::error::Error::reason));
        let reason = reason.unwrap_or("the session has ended unexpectedly");
        let advice = ADVICE.iter().find(|(known, _)| reason.contains(known));
        let text = match advice {
            Some((_, advice)) => format!("{reason}: {advice}"),
            None => reason.to_owned(),
        };
        Self { kind: SessionErrorKind::Protocol, reason: reason.to_owned(), text }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for SessionError {}

impl From<&ErrorStack> for SessionError {
    fn from(stack: &ErrorStack) -> Self {
        Self::of_stack(Some(stack))
    }
}

impl From<SessionError> for io::Error {
    fn from(failure: SessionError) -> Self {
        Self::other(failure)
    }
}
