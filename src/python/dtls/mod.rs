//! DTLS: contexts, and what there is to know of a session.

mod certificate;
mod context;
mod session;

pub(crate) use context::DtlsContext;
pub(crate) use session::DtlsSession;

use pyo3::exceptions::{PyOSError, PyValueError};

use super::error::{Error, failure, strerror};
use crate::net::dtls::{ContextError, SessionError};

/// The version of OpenSSL in use, as text.
pub(crate) fn openssl_version() -> &'static str {
    openssl::version::version()
}

/// The version of OpenSSL in use, as a number.
pub(crate) fn openssl_version_number() -> i64 {
    openssl::version::number()
}

impl From<ContextError> for Error {
    fn from(error: ContextError) -> Self {
        match error {
            ContextError::Invalid(text) => PyValueError::new_err(text).into(),
            ContextError::OpenSsl(stack) => failure(&SessionError::from(&stack)).into(),
            ContextError::File(path, error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                let mut text = strerror(&error);
                if errno == libc::EACCES {
                    text.push_str("; give this process permission to read the file");
                }
                PyOSError::new_err((errno, text, path.into_os_string())).into()
            }
        }
    }
}
