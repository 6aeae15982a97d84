//! Limits on which peers may send to a socket, and how much.

use std::net::IpAddr;
use std::sync::Arc;

use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};

use super::buffer::gather;
use super::counters::GuardStats;
use super::error::{Error, Result};
use crate::net;
use crate::net::guard::{NetworkError, Networks, Policy, PolicyError, parse_network};
use crate::net::program_option;

/// Checks datagrams before Python sees them.
#[pyclass(frozen, module = "tomada")]
pub(crate) struct Guard {
    inner: Arc<net::Guard>,
}

impl Guard {
    pub(crate) fn inner(&self) -> &Arc<net::Guard> {
        &self.inner
    }
}

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::NoMemory => PyMemoryError::new_err(error.to_string()).into(),
            _ => PyValueError::new_err(error.to_string()).into(),
        }
    }
}

impl From<PolicyError> for Error {
    fn from(error: PolicyError) -> Self {
        match error {
            PolicyError::Wrong(text) => PyValueError::new_err(text).into(),
            PolicyError::NoMemory(text) => PyMemoryError::new_err(text).into(),
        }
    }
}

#[pymethods]
impl Guard {
    #[new]
    #[pyo3(signature = (
        *,
        allow=None,
        deny=None,
        rate=None,
        burst=None,
        prefixes=(32, 64),
        ceiling=None,
        amplification=None,
        max_size=None,
        sources=262_144,
        kernel_filter=true,
    ), text_signature = "(*, allow=None, deny=None, rate=None, burst=None, prefixes=(32, 64), \
        ceiling=None, amplification=None, max_size=None, sources=262144, kernel_filter=True)")]
    #[allow(clippy::too_many_arguments)] // each is a check of its own
    fn new(
        allow: Option<&Bound<'_, PyAny>>,
        deny: Option<&Bound<'_, PyAny>>,
        rate: Option<f64>,
        burst: Option<u32>,
        prefixes: (u8, u8),
        ceiling: Option<f64>,
        amplification: Option<f64>,
        max_size: Option<usize>,
        sources: usize,
        kernel_filter: bool,
    ) -> Result<Self> {
        let allow = allow.map(|allow| networks(allow, "allow")).transpose()?;
        let deny = deny.map(|deny| networks(deny, "deny")).transpose()?;
        let has_list = allow.is_some() || deny.is_some();
        let list = Networks::new(allow.as_deref(), &deny.unwrap_or_default())?;
        let rate = match (rate, burst) {
            (None, Some(_)) => return Err(PyValueError::new_err("burst needs a rate").into()),
            (rate, Some(burst)) => rate.map(|rate| (rate, burst)),
            // One second's worth.
            (rate, None) => rate.map(|rate| (rate, rate.ceil().max(1.0) as u32)),
        };
        let (prefix_v4, prefix_v6) = prefixes;
        let inner = net::Guard::new(Policy {
            networks: has_list.then_some(list),
            kernel_filter,
            rate,
            prefix_v4,
            prefix_v6,
            ceiling,
            amplification,
            max_size,
            sources,
        })?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Return the counters.
    fn stats(&self) -> GuardStats {
        GuardStats::new(self.inner.counts())
    }

    /// Vouch for an address.
    #[pyo3(signature = (address, /))]
    fn validate(&self, address: &Bound<'_, PyAny>) -> Result<()> {
        let host = match address.cast::<PyTuple>() {
            Ok(address) => address.get_item(0)?.str()?,
            Err(_) => address.str()?,
        };
        let host = host.to_str()?;
        let (ip, _scope) = host.split_once('%').unwrap_or((host, ""));
        let ip: IpAddr = ip.parse().map_err(|_| {
            PyValueError::new_err(format!("the address must be numeric, not {host:?}"))
        })?;
        self.inner.validate(ip);
        Ok(())
    }

    /// The networks as a classic BPF program, or None.
    #[getter]
    fn kernel_filter<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        let program = self.inner.kernel_filter()?;
        let bytes: Vec<u8> = program
            .iter()
            .flat_map(|instruction| {
                let mut bytes = [0; 8];
                bytes[..2].copy_from_slice(&instruction.code.to_ne_bytes());
                (bytes[2], bytes[3]) = (instruction.jt, instruction.jf);
                bytes[4..].copy_from_slice(&instruction.k.to_ne_bytes());
                bytes
            })
            .collect();
        Some(PyBytes::new(py, &bytes))
    }

    /// Attach the kernel filter, but not the guard, to any socket.
    #[pyo3(signature = (sock, /))]
    fn attach(&self, sock: &Bound<'_, PyAny>) -> Result<()> {
        let Some(program) = self.inner.kernel_filter() else {
            let message = "the guard has no kernel filter: it has no networks, or too many";
            return Err(PyValueError::new_err(message).into());
        };
        // The kernel copies the program that the option points to.
        let option = PyBytes::new(sock.py(), &program_option(program));
        let arguments = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, option);
        sock.call_method1("setsockopt", arguments)?;
        Ok(())
    }

    fn __repr__(&self) -> String {
        let counts = self.inner.counts();
        format!("<tomada.Guard: {} admitted, {} refused>", counts.admitted, counts.refused)
    }
}

/// Reads a list of networks: strings, or objects whose `str` is a network, like those of
/// `ipaddress`.
pub(super) fn networks(list: &Bound<'_, PyAny>, name: &str) -> Result<Vec<ipnet::IpNet>> {
    if list.is_instance_of::<PyString>() {
        let message = format!("{name} must be a list of networks, not a single str");
        return Err(PyTypeError::new_err(message).into());
    }
    let parse = |network: PyResult<Bound<'_, PyAny>>| {
        Ok(parse_network(network?.str()?.to_str()?).map_err(Error::from)?)
    };
    Ok(gather(list.try_iter()?.map(parse))?)
}
