//! Functions of OpenSSL for DTLS that the `openssl` crate lacks.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::ptr;
use std::time::Duration;

use foreign_types::ForeignTypeRef;
use openssl::error::ErrorStack;
use openssl::ssl::{SslContextBuilder, SslContextRef, SslRef, SslSessionRef};
use openssl::x509::X509Ref;
use openssl_sys as ffi;

/// `BIO_ADDR`
enum BioAddress {}

unsafe extern "C" {
    fn BIO_ADDR_new() -> *mut BioAddress;
    fn BIO_ADDR_free(address: *mut BioAddress);
    fn DTLSv1_listen(ssl: *mut ffi::SSL, client: *mut BioAddress) -> c_int;
    fn DTLS_get_data_mtu(ssl: *const ffi::SSL) -> usize;
    fn SSL_SESSION_get_max_fragment_length(session: *const ffi::SSL_SESSION) -> u8;
    fn SSL_has_pending(ssl: *const ffi::SSL) -> c_int;
    fn OPENSSL_cleanse(memory: *mut c_void, len: usize);
    fn SSL_CTX_use_psk_identity_hint(context: *mut ffi::SSL_CTX, hint: *const c_char) -> c_int;
}

const DTLS_CTRL_GET_TIMEOUT: c_int = 73;
const DTLS_CTRL_HANDLE_TIMEOUT: c_int = 74;

/// Starts a server's session from a `ClientHello` whose cookie the context accepts, and which is the
/// next datagram that the session reads; returns false if OpenSSL does not take it: see
/// `DTLSv1_listen(3)`.
pub(in crate::net) fn listen(ssl: &SslRef) -> Result<bool, ErrorStack> {
    // SAFETY: the address is freed below; OpenSSL only writes into it meanwhile.
    let listened = unsafe {
        let client = BIO_ADDR_new();
        if client.is_null() {
            return Err(ErrorStack::get());
        }
        let listened = DTLSv1_listen(ssl.as_ptr(), client);
        BIO_ADDR_free(client);
        listened
    };
    if listened < 0 {
        return Err(ErrorStack::get());
    }
    Ok(listened > 0)
}

/// Makes a client offer to resume an earlier session of the same context.
pub(in crate::net) fn resume(ssl: &mut SslRef, session: &SslSessionRef) -> Result<(), ErrorStack> {
    // SAFETY: the caller keeps sessions with the context that they belong to.
    unsafe { ssl.set_session(session) }
}

/// The time until the last flight must be sent again, if it may have to be: `DTLSv1_get_timeout`.
pub(in crate::net) fn retransmission_timeout(ssl: &SslRef) -> Option<Duration> {
    let mut left = libc::timeval { tv_sec: 0, tv_usec: 0 };
    // SAFETY: this command of SSL_ctrl(3) writes a struct timeval.
    let is_set = unsafe {
        let left = ptr::from_mut(&mut left).cast::<c_void>();
        ffi::SSL_ctrl(ssl.as_ptr(), DTLS_CTRL_GET_TIMEOUT, 0, left)
    };
    let time = || Duration::new(left.tv_sec.max(0) as u64, left.tv_usec.max(0) as u32 * 1000);
    (is_set > 0).then(time)
}

/// Sends the last flight again if its time has come; fails if that was often enough:
/// `DTLSv1_handle_timeout(3)`.
pub(in crate::net) fn handle_timeout(ssl: &SslRef) -> Result<(), ErrorStack> {
    // SAFETY: this command of SSL_ctrl(3) takes no argument.
    let handled: c_long =
        unsafe { ffi::SSL_ctrl(ssl.as_ptr(), DTLS_CTRL_HANDLE_TIMEOUT, 0, ptr::null_mut()) };
    if handled < 0 { Err(ErrorStack::get()) } else { Ok(()) }
}

/// Sets the MTU, which must be one that OpenSSL accepts: `SSL_set_mtu(3)`.
pub(in crate::net) fn set_mtu(ssl: &SslRef, mtu: usize) {
    // SAFETY: it only writes a number to the session.
    unsafe { ffi::SSL_set_mtu(ssl.as_ptr(), mtu as c_long) };
}

/// The maximum length of a record's plaintext, if its datagram may have the session's MTU:
/// `DTLS_get_data_mtu(3)`. 0 before the end of the handshake.
pub(in crate::net) fn data_mtu(ssl: &SslRef) -> usize {
    // SAFETY: it only reads the session.
    unsafe { DTLS_get_data_mtu(ssl.as_ptr()) }
}

/// The most bytes of plaintext that a record may have, if the client has asked for a limit: RFC 6066,
/// section 4.
pub(in crate::net) fn max_fragment_length(session: &SslSessionRef) -> Option<usize> {
    // SAFETY: this reads a field.
    match unsafe { SSL_SESSION_get_max_fragment_length(session.as_ptr()) } {
        mode @ 1..=4 => Some(256 << mode),
        _ => None,
    }
}

/// Whether OpenSSL has records, or a part of a datagram, that were not read yet:
/// `SSL_has_pending(3)`.
pub(in crate::net) fn has_pending(ssl: &SslRef) -> bool {
    // SAFETY: it only reads the session.
    unsafe { SSL_has_pending(ssl.as_ptr()) == 1 }
}

/// Adds a certificate to the chain of the one that was set last. (The function of the `openssl`
/// crate adds it to the chains of all.)
pub(in crate::net) fn add_chain_certificate(
    context: &SslContextBuilder,
    certificate: &X509Ref,
) -> Result<(), ErrorStack> {
    const SSL_CTRL_CHAIN_CERT: c_int = 89;
    // SAFETY: with 1, this command of SSL_CTX_ctrl(3) adds a reference to the certificate.
    let added = unsafe {
        let certificate = certificate.as_ptr().cast::<c_void>();
        ffi::SSL_CTX_ctrl(context.as_ptr(), SSL_CTRL_CHAIN_CERT, 1, certificate)
    };
    if added == 1 { Ok(()) } else { Err(ErrorStack::get()) }
}

/// Sets what a server tells clients about the identity that it wants of them.
pub(in crate::net) fn set_psk_identity_hint(
    context: &SslContextBuilder,
    hint: &CStr,
) -> Result<(), ErrorStack> {
    // SAFETY: the hint ends with a zero, and is copied.
    let set = unsafe { SSL_CTX_use_psk_identity_hint(context.as_ptr(), hint.as_ptr()) };
    if set == 1 { Ok(()) } else { Err(ErrorStack::get()) }
}

/// The counters of a context's sessions: `SSL_CTX_sess_number(3)`.
pub(in crate::net) fn session_stats(context: &SslContextRef) -> Vec<(&'static str, i64)> {
    /// The commands of `SSL_CTX_ctrl(3)`, by the names that the `ssl` module gives them.
    const COUNTERS: [(&str, c_int); 11] = [
        ("number", 20),
        ("connect", 21),
        ("connect_good", 22),
        ("connect_renegotiate", 23),
        ("accept", 24),
        ("accept_good", 25),
        ("accept_renegotiate", 26),
        ("hits", 27),
        ("misses", 29),
        ("timeouts", 30),
        ("cache_full", 31),
    ];
    let read = |(name, command)| {
        // SAFETY: these commands take no argument, and only read.
        let count = unsafe { ffi::SSL_CTX_ctrl(context.as_ptr(), command, 0, ptr::null_mut()) };
        (name, count)
    };
    COUNTERS.into_iter().map(read).collect()
}

/// Overwrites a secret, which the compiler does not leave out: `OPENSSL_cleanse(3)`.
pub(in crate::net) fn cleanse(secret: &mut [u8]) {
    // SAFETY: it writes into the slice.
    unsafe { OPENSSL_cleanse(secret.as_mut_ptr().cast(), secret.len()) }
}
