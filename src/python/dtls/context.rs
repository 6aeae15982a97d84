//! Certificates, keys and rules that sessions share.

use std::ffi::{CString, OsString};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openssl::ssl::{SslAlert, SslVersion};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};

use crate::net::dtls::{
    self, ChooseContext, LEAST_MTU, PskClient, PskServer, Role, Secret, Settings, Verify,
};
use crate::python::buffer::Readable;
use crate::python::error::Result;

/// DTLS 1.0 and 1.2, by the numbers in their records.
const VERSIONS: [(u16, SslVersion); 2] =
    [(0xfeff, SslVersion::DTLS1), (0xfefd, SslVersion::DTLS1_2)];
/// The alerts that may end a handshake because of the server's name, by their numbers.
const ALERTS: [(i32, Option<SslAlert>); 6] = [
    (40, Some(SslAlert::HANDSHAKE_FAILURE)),
    (49, Some(SslAlert::ACCESS_DENIED)),
    (71, Some(SslAlert::INSUFFICIENT_SECURITY)),
    (80, Some(SslAlert::INTERNAL_ERROR)),
    (90, Some(SslAlert::USER_CANCELLED)),
    (112, None), // unrecognized_name
];
/// In seconds.
const CENTURY: f64 = 3.2e9;
/// The longest datagram of IP.
const LONGEST: usize = 65_507;

/// The settings of sessions.
#[pyclass(frozen, subclass, module = "tomada._core")]
pub(crate) struct DtlsContext {
    inner: Arc<dtls::Context>,
}

impl DtlsContext {
    pub(crate) fn inner(&self) -> &Arc<dtls::Context> {
        &self.inner
    }

    fn set_versions(&self, change: impl FnOnce(&mut (SslVersion, SslVersion))) -> Result<()> {
        let mut versions = self.inner.read(|settings| settings.versions);
        change(&mut versions);
        let rank = |version| VERSIONS.iter().position(|(_, known)| *known == version);
        if rank(versions.0) > rank(versions.1) {
            let message = "minimum_version must not be newer than maximum_version";
            return Err(PyValueError::new_err(message).into());
        }
        self.inner.change(|settings| settings.versions = versions);
        Ok(())
    }
}

#[pymethods]
impl DtlsContext {
    #[new]
    #[pyo3(signature = (is_server, /))]
    fn new(is_server: bool) -> Self {
        let role = if is_server { Role::Server } else { Role::Client };
        Self { inner: Arc::new(dtls::Context::new(role)) }
    }

    /// Load a certificate chain and its private key from PEM files.
    #[pyo3(signature = (certfile, keyfile=None, password=None))]
    fn load_cert_chain(
        &self,
        py: Python<'_>,
        certfile: PathBuf,
        keyfile: Option<PathBuf>,
        password: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let password = password.map(|password| password_of(password)).transpose()?;
        Ok(py.detach(|| {
            self.inner.change(|settings| {
                settings.load_cert_chain(&certfile, keyfile.as_deref(), || password)
            })
        })?)
    }

    /// Trust the certificates in a PEM file, in the files of a directory, or in memory.
    #[pyo3(signature = (cafile=None, capath=None, cadata=None))]
    fn load_verify_locations(
        &self,
        cafile: Option<PathBuf>,
        capath: Option<PathBuf>,
        cadata: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        if cafile.is_none() && capath.is_none() && cadata.is_none() {
            let message = "cafile, capath and cadata cannot be all omitted";
            return Err(PyTypeError::new_err(message).into());
        }
        let data = match cadata {
            None => None,
            Some(text) if text.is_instance_of::<PyString>() => {
                Some(text.extract::<String>()?.into_bytes())
            }
            Some(data) => Some(Readable::new(data)?.copy()?),
        };
        Ok(self.inner.change(|settings| {
            if let Some(path) = cafile {
                settings.trust_file(&path)?;
            }
            if let Some(path) = capath {
                settings.trust_directory(&path)?;
            }
            data.map_or(Ok(()), |data| settings.trust(&data).map(drop))
        })?)
    }

    /// Trust the certificates that the system trusts.
    fn set_default_verify_paths(&self) {
        self.inner.change(Settings::trust_system);
    }

    /// Choose the ciphers, in the format of openssl-ciphers(1).
    #[pyo3(signature = (ciphers, /))]
    fn set_ciphers(&self, ciphers: &str) -> Result<()> {
        Ok(self.inner.change(|settings| settings.set_ciphers(ciphers))?)
    }

    /// Offer, or accept, application protocols, best first.
    #[pyo3(signature = (alpn_protocols, /))]
    fn set_alpn_protocols(&self, alpn_protocols: Vec<String>) -> Result<()> {
        let names = alpn_protocols.iter().map(String::as_bytes);
        Ok(self.inner.change(|settings| settings.set_alpn(names))?)
    }

    /// Offer, or accept, profiles of SRTP, best first.
    #[pyo3(signature = (profiles, /))]
    fn set_srtp_profiles(&self, profiles: Vec<String>) -> Result<()> {
        Ok(self.inner.change(|settings| settings.set_srtp(&profiles))?)
    }

    /// Return OpenSSL's session counters.
    fn session_stats<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        for (name, count) in self.inner.session_stats()? {
            stats.set_item(name, count)?;
        }
        Ok(stats)
    }

    /// Let a function choose the context of a session, or an alert, by the name of the server.
    #[pyo3(signature = (callback, /))]
    fn _choose_by_name(&self, callback: Option<Bound<'_, PyAny>>) {
        let callback = callback.map(|callback| {
            let callback = callback.unbind();
            Arc::new(move |name: Option<&str>| {
                Python::attach(|py| {
                    let chosen = chosen_for(callback.bind(py), name);
                    chosen.unwrap_or_else(|error| {
                        error.write_unraisable(py, Some(callback.bind(py)));
                        Err(Some(SslAlert::HANDSHAKE_FAILURE))
                    })
                })
            }) as Arc<ChooseContext>
        });
        replace(&self.inner, |settings| std::mem::replace(&mut settings.choose_context, callback));
    }

    /// Let a function choose a client's identity and key.
    #[pyo3(signature = (callback, /))]
    fn set_psk_client_callback(&self, callback: Option<Bound<'_, PyAny>>) -> Result<()> {
        check_callable(callback.as_ref())?;
        let callback = callback.map(|callback| {
            let callback = callback.unbind();
            Arc::new(move |hint: Option<&[u8]>| {
                Python::attach(|py| {
                    let chosen = choose(callback.bind(py), hint);
                    chosen.unwrap_or_else(|error| {
                        error.write_unraisable(py, Some(callback.bind(py)));
                        None
                    })
                })
            }) as Arc<PskClient>
        });
        replace(&self.inner, |settings| std::mem::replace(&mut settings.psk_client, callback));
        Ok(())
    }

    /// Let a function find the keys of clients by their identities.
    #[pyo3(signature = (callback, /, identity_hint=None))]
    fn set_psk_server_callback(
        &self,
        callback: Option<Bound<'_, PyAny>>,
        identity_hint: Option<String>,
    ) -> Result<()> {
        check_callable(callback.as_ref())?;
        let hint = identity_hint.map(CString::new).transpose();
        let hint = hint.map_err(|_| PyValueError::new_err("identity_hint contains a zero byte"))?;
        if hint.as_ref().is_some_and(|hint| hint.count_bytes() > 128) {
            return Err(PyValueError::new_err("identity_hint is longer than 128 bytes").into());
        }
        let callback = callback.map(|callback| {
            let callback = callback.unbind();
            Arc::new(move |identity: &[u8]| {
                Python::attach(|py| {
                    find(callback.bind(py), identity).unwrap_or_else(|error| {
                        error.write_unraisable(py, Some(callback.bind(py)));
                        None
                    })
                })
            }) as Arc<PskServer>
        });
        replace(&self.inner, |settings| {
            settings.psk_hint = hint;
            std::mem::replace(&mut settings.psk_server, callback)
        });
        Ok(())
    }

    /// Whether the peer's certificate is verified: 0, 1 or 2.
    #[getter(_verify)]
    fn verify(&self) -> u8 {
        self.inner.read(|settings| settings.verify as u8)
    }

    #[setter(_verify)]
    fn set_verify(&self, mode: u8) -> Result<()> {
        let verify = match mode {
            0 => Verify::Nothing,
            1 => Verify::Optional,
            2 => Verify::Required,
            _ => return Err(PyValueError::new_err("invalid value for verify_mode").into()),
        };
        if verify == Verify::Nothing && self.check_hostname() {
            let message = "Cannot set verify_mode to CERT_NONE when check_hostname is enabled.";
            return Err(PyValueError::new_err(message).into());
        }
        self.inner.change(|settings| settings.verify = verify);
        Ok(())
    }

    /// Whether the server's certificate must be for its name.
    #[getter]
    fn check_hostname(&self) -> bool {
        self.inner.read(|settings| settings.check_hostname)
    }

    #[setter]
    fn set_check_hostname(&self, check: bool) {
        self.inner.change(|settings| {
            settings.check_hostname = check;
            if check && settings.verify == Verify::Nothing {
                settings.verify = Verify::Required;
            }
        });
    }

    #[getter(_minimum)]
    fn minimum(&self) -> u16 {
        number_of(self.inner.read(|settings| settings.versions.0))
    }

    #[setter(_minimum)]
    fn set_minimum(&self, version: u16) -> Result<()> {
        let version = version_of(version)?;
        self.set_versions(|versions| versions.0 = version)
    }

    #[getter(_maximum)]
    fn maximum(&self) -> u16 {
        number_of(self.inner.read(|settings| settings.versions.1))
    }

    #[setter(_maximum)]
    fn set_maximum(&self, version: u16) -> Result<()> {
        let version = version_of(version)?;
        self.set_versions(|versions| versions.1 = version)
    }

    /// The longest datagram of a session in bytes.
    #[getter]
    fn mtu(&self) -> usize {
        self.inner.read(|settings| settings.mtu)
    }

    #[setter]
    fn set_mtu(&self, mtu: usize) -> Result<()> {
        if !(LEAST_MTU..=LONGEST).contains(&mtu) {
            let message = format!("mtu must be from {LEAST_MTU} to {LONGEST}, not {mtu}");
            return Err(PyValueError::new_err(message).into());
        }
        self.inner.change(|settings| settings.mtu = mtu);
        Ok(())
    }

    /// The maximum number of sessions of a socket.
    #[getter]
    fn max_sessions(&self) -> usize {
        self.inner.read(|settings| settings.limits.sessions)
    }

    #[setter]
    fn set_max_sessions(&self, most: usize) -> Result<()> {
        let most = at_least_one(most, "max_sessions")?;
        self.inner.change(|settings| settings.limits.sessions = most);
        Ok(())
    }

    /// The maximum number of handshakes that are under way.
    #[getter]
    fn max_handshakes(&self) -> usize {
        self.inner.read(|settings| settings.limits.handshakes)
    }

    #[setter]
    fn set_max_handshakes(&self, most: usize) -> Result<()> {
        let most = at_least_one(most, "max_handshakes")?;
        self.inner.change(|settings| settings.limits.handshakes = most);
        Ok(())
    }

    /// How long a handshake may take, in seconds.
    #[getter]
    fn handshake_timeout(&self) -> f64 {
        self.inner.read(|settings| settings.limits.handshake_time.as_secs_f64())
    }

    #[setter]
    fn set_handshake_timeout(&self, seconds: f64) -> Result<()> {
        let time = duration(seconds, "handshake_timeout")?;
        self.inner.change(|settings| settings.limits.handshake_time = time);
        Ok(())
    }

    /// How long a session may be idle, in seconds.
    #[getter]
    fn idle_timeout(&self) -> f64 {
        self.inner.read(|settings| settings.limits.idle_time.as_secs_f64())
    }

    #[setter]
    fn set_idle_timeout(&self, seconds: f64) -> Result<()> {
        let time = duration(seconds, "idle_timeout")?;
        self.inner.change(|settings| settings.limits.idle_time = time);
        Ok(())
    }

    /// The file that the secrets of sessions are appended to, or None.
    #[getter]
    fn keylog_filename(&self) -> Option<OsString> {
        self.inner.read(|settings| settings.key_log().map(|path| path.as_os_str().to_owned()))
    }

    #[setter]
    fn set_keylog_filename(&self, path: Option<PathBuf>) -> Result<()> {
        Ok(self.inner.change(|settings| settings.log_keys(path.as_deref()))?)
    }

    /// Check that the context is for one side and complete, before the first session begins.
    #[pyo3(signature = (is_server, /))]
    fn _prepare(&self, is_server: bool) -> Result<()> {
        if is_server != (self.inner.role() == Role::Server) {
            let side = if is_server { "SERVER" } else { "CLIENT" };
            let message = format!("this side of a session needs a context of PROTOCOL_DTLS_{side}");
            return Err(PyValueError::new_err(message).into());
        }
        if self.inner.role() == Role::Server && !self.inner.has_identity() {
            let message = "a server needs a certificate or keys: call load_cert_chain() or \
                           set_psk_server_callback() on its context";
            return Err(PyValueError::new_err(message).into());
        }
        Ok(self.inner.prepare()?)
    }
}

/// Changes the settings, and drops what they had before when they are unlocked: it may run code.
fn replace<T>(context: &dtls::Context, change: impl FnOnce(&mut Settings) -> T) {
    drop(context.change(change));
}

fn check_callable(callback: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    match callback {
        Some(callback) if !callback.is_callable() => {
            Err(PyTypeError::new_err("callback must be callable or None"))
        }
        _ => Ok(()),
    }
}

/// Bytes that a peer has sent as text, which may be of any encoding.
pub(super) fn text_of<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    PyBytes::new(py, bytes).call_method1("decode", ("utf-8", "surrogateescape"))
}

/// The bytes of an identity that Python has given as text, or as bytes.
fn bytes_of(value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if value.is_instance_of::<PyString>() {
        return value.call_method1("encode", ("utf-8", "surrogateescape"))?.extract();
    }
    Readable::new(value)?.copy()
}

/// The choice of a server's callback for a name.
type Chosen = std::result::Result<Option<Arc<dtls::Context>>, Option<SslAlert>>;

/// Asks a server's callback for the context of a session, or the alert that ends it.
fn chosen_for(callback: &Bound<'_, PyAny>, name: Option<&str>) -> PyResult<Chosen> {
    let chosen = callback.call1((name,))?;
    if chosen.is_none() {
        return Ok(Ok(None));
    }
    if let Ok(context) = chosen.cast::<DtlsContext>() {
        let context = context.get().inner();
        if context.role() != Role::Server {
            let message = "sni_callback must choose a context of PROTOCOL_DTLS_SERVER";
            return Err(PyValueError::new_err(message));
        }
        return Ok(Ok(Some(Arc::clone(context))));
    }
    let number: i32 = chosen.extract()?;
    let alert = ALERTS.iter().find(|(known, _)| *known == number);
    let error =
        || PyValueError::new_err(format!("sni_callback returned {number}, which is not an alert"));
    Ok(Err(alert.ok_or_else(error)?.1))
}

/// Asks a client's callback.
fn choose(callback: &Bound<'_, PyAny>, hint: Option<&[u8]>) -> PyResult<Option<(Vec<u8>, Secret)>> {
    let hint = hint.map(|hint| text_of(callback.py(), hint)).transpose()?;
    let (identity, key): (Bound<'_, PyAny>, Bound<'_, PyAny>) =
        callback.call1((hint,))?.extract()?;
    let identity = if identity.is_none() { Vec::new() } else { bytes_of(&identity)? };
    Ok(Some((identity, Readable::new(&key)?.copy()?.into())))
}

/// Asks a server's callback.
fn find(callback: &Bound<'_, PyAny>, identity: &[u8]) -> PyResult<Option<Secret>> {
    let key = callback.call1((text_of(callback.py(), identity)?,))?;
    if key.is_none() {
        return Ok(None);
    }
    let key = Secret::from(Readable::new(&key)?.copy()?);
    Ok((!key.is_empty()).then_some(key))
}

/// Reads the password of a key: text, bytes, or a function that returns them.
fn password_of(password: &Bound<'_, PyAny>) -> PyResult<Secret> {
    let given = if password.is_callable() { &password.call0()? } else { password };
    Ok(bytes_of(given)?.into())
}

fn at_least_one(number: usize, name: &str) -> Result<usize> {
    if number == 0 {
        return Err(PyValueError::new_err(format!("{name} must be at least 1, not 0")).into());
    }
    Ok(number)
}

/// Reads a number of seconds: at most a century, which is as good as no limit.
fn duration(seconds: f64, name: &str) -> Result<Duration> {
    if seconds.is_nan() || seconds <= 0.0 {
        let message = format!("{name} must be a positive number of seconds, not {seconds}");
        return Err(PyValueError::new_err(message).into());
    }
    Ok(Duration::from_secs_f64(seconds.min(CENTURY)))
}

fn version_of(number: u16) -> Result<SslVersion> {
    let known = VERSIONS.iter().find(|(known, _)| *known == number);
    let error = || PyValueError::new_err(format!("unsupported version: {number:#06x}"));
    Ok(known.ok_or_else(error)?.1)
}

fn number_of(version: SslVersion) -> u16 {
    VERSIONS.iter().find(|(_, known)| *known == version).map_or(0, |(number, _)| *number)
}
