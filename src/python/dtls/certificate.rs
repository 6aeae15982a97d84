//! A certificate as the `ssl` module describes it.

use openssl::x509::{GeneralNameRef, X509NameRef, X509Ref};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// Describes a certificate as `SSLSocket.getpeercert` does.
pub(super) fn describe<'py>(
    py: Python<'py>,
    certificate: &X509Ref,
) -> PyResult<Bound<'py, PyDict>> {
    let about = PyDict::new(py);
    about.set_item("subject", name(py, certificate.subject_name())?)?;
    about.set_item("issuer", name(py, certificate.issuer_name())?)?;
    about.set_item("version", certificate.version() + 1)?;
    let serial = certificate.serial_number().to_bn().and_then(|number| number.to_hex_str());
    about.set_item("serialNumber", serial.map(|hex| hex.to_string()).unwrap_or_default())?;
    about.set_item("notBefore", certificate.not_before().to_string())?;
    about.set_item("notAfter", certificate.not_after().to_string())?;
    if let Some(names) = certificate.subject_alt_names() {
        let names: Vec<_> = names.iter().filter_map(alternative).collect();
        about.set_item("subjectAltName", PyTuple::new(py, names)?)?;
    }
    Ok(about)
}

/// A name, as a tuple of its parts.
fn name<'py>(py: Python<'py>, name: &X509NameRef) -> PyResult<Bound<'py, PyTuple>> {
    let part = |entry: &openssl::x509::X509NameEntryRef| {
        let kind = entry.object().nid().long_name().unwrap_or("unknown").to_owned();
        let value = entry.data().to_string().unwrap_or_default();
        ((kind, value),)
    };
    PyTuple::new(py, name.entries().map(part).collect::<Vec<_>>())
}

/// An alternative name of a kind that the `ssl` module names.
fn alternative(name: &GeneralNameRef) -> Option<(&'static str, String)> {
    if let Some(name) = name.dnsname() {
        return Some(("DNS", name.to_owned()));
    }
    if let Some(address) = name.ipaddress() {
        let address = match *address {
            [a, b, c, d] => std::net::IpAddr::from([a, b, c, d]),
            _ => std::net::IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        };
        return Some(("IP Address", address.to_string()));
    }
    let other = name.email().map(|name| ("email", name));
    other
        .or_else(|| name.uri().map(|name| ("URI", name)))
        .map(|(kind, name)| (kind, name.to_owned()))
}
