//! The properties of one session.

use std::sync::Arc;

use openssl::ssl::SslRef;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::certificate::describe;
use crate::net::dtls::{SessionError, SharedSession};
use crate::python::error::{Result, failure};

/// A session with a peer.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct DtlsSession {
    inner: Arc<SharedSession>,
}

/// A cipher: its name, its version, and its strength in bits.
type Cipher = (String, String, i32);

impl From<Arc<SharedSession>> for DtlsSession {
    fn from(inner: Arc<SharedSession>) -> Self {
        Self { inner }
    }
}

impl DtlsSession {
    fn look<T>(&self, look: impl FnOnce(&SslRef) -> T) -> Result<T> {
        Ok(self.inner.inspect(look).ok_or_else(|| failure(&SessionError::of_parent()))?)
    }
}

#[pymethods]
impl DtlsSession {
    /// Return the version, such as 'DTLSv1.2'.
    fn version(&self) -> Result<String> {
        self.look(|ssl| ssl.version_str().to_owned())
    }

    /// Return the name of the cipher, its version, and its strength in bits.
    fn cipher(&self) -> Result<Option<Cipher>> {
        self.look(|ssl| {
            let cipher = ssl.current_cipher()?;
            Some((cipher.name().to_owned(), cipher.version().to_owned(), cipher.bits().secret))
        })
    }

    /// Return the peer's certificate, as a dict or in DER, or None.
    #[pyo3(signature = (binary_form=false))]
    fn getpeercert<'py>(
        &self,
        py: Python<'py>,
        binary_form: bool,
    ) -> Result<Option<Bound<'py, PyAny>>> {
        let (certificate, verified) = self.look(|ssl| {
            let verifies = ssl.verify_mode() != openssl::ssl::SslVerifyMode::NONE;
            (ssl.peer_certificate(), verifies)
        })?;
        let Some(certificate) = certificate else { return Ok(None) };
        if binary_form {
            let der = certificate.to_der().unwrap_or_default();
            return Ok(Some(PyBytes::new(py, &der).into_any()));
        }
        let about = if verified { describe(py, &certificate)? } else { PyDict::new(py) };
        Ok(Some(about.into_any()))
    }

    /// Return the application protocol that both sides support, or None.
    fn selected_alpn_protocol(&self) -> Result<Option<String>> {
        self.look(|ssl| {
            ssl.selected_alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned())
        })
    }

    /// Return the profile of SRTP that both sides support, or None.
    fn selected_srtp_profile(&self) -> Result<Option<String>> {
        self.look(|ssl| ssl.selected_srtp_profile().map(|profile| profile.name().to_owned()))
    }

    /// The identity of the pre-shared key, or None.
    #[getter]
    fn psk_identity<'py>(&self, py: Python<'py>) -> Result<Option<Bound<'py, PyAny>>> {
        let identity = self.look(|ssl| ssl.psk_identity().map(<[u8]>::to_vec))?;
        Ok(identity.map(|identity| super::context::text_of(py, &identity)).transpose()?)
    }

    /// The name that the client has asked for, or None.
    #[getter]
    fn server_name(&self) -> Result<Option<String>> {
        let host = openssl::ssl::NameType::HOST_NAME;
        self.look(|ssl| ssl.servername(host).map(ToOwned::to_owned))
    }

    /// Whether the session resumes an earlier one.
    #[getter]
    fn session_reused(&self) -> Result<bool> {
        self.look(SslRef::session_reused)
    }

    /// The maximum length of a datagram in bytes.
    #[getter]
    fn max_datagram_size(&self) -> Result<usize> {
        Ok(self.inner.limit().ok_or_else(|| failure(&SessionError::of_parent()))?)
    }

    /// Return key material that both sides derive from the session.
    #[pyo3(signature = (label, length, context=None))]
    fn export_keying_material<'py>(
        &self,
        py: Python<'py>,
        label: &str,
        length: usize,
        context: Option<&[u8]>,
    ) -> Result<Bound<'py, PyBytes>> {
        if !(1..=1 << 16).contains(&length) {
            let message = format!("length must be from 1 to 65536, not {length}");
            return Err(PyValueError::new_err(message).into());
        }
        let mut material = vec![0; length];
        let exported =
            self.look(|ssl| ssl.export_keying_material(&mut material, label, context))?;
        exported.map_err(|stack| failure(&SessionError::from(&stack)))?;
        Ok(PyBytes::new(py, &material))
    }
}
