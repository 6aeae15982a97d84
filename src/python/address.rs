//! Converts addresses between Python's tuples and the kernel's bytes.

use std::ffi::{CString, OsStr, c_int};
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;

use pyo3::exceptions::{PyDeprecationWarning, PyOSError, PyOverflowError, PyTypeError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyInt, PyString, PyTuple};

use super::buffer::{Readable, TypeName, new_bytes};
use super::error::{Error, Result};
use crate::net::address::PathTooLong;
use crate::net::names::{self, format_v4, format_v6, interface_index};
use crate::net::{Address, AddressKind, RecentTable};

/// Converts an address as the standard module does: `(host, port)` for IPv4, `(host, port,
/// flowinfo, scope_id)` for IPv6, a `str` for `AF_UNIX` (`bytes` if the name is abstract), `None`
/// if there is no address.
pub(crate) fn to_python<'py>(py: Python<'py>, address: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match AddressKind::of(address) {
        AddressKind::Unnamed => Ok(py.None().into_bound(py)),
        AddressKind::V4(address) => {
            (format_v4(*address.ip()), address.port()).into_pyobject(py).map(Bound::into_any)
        }
        AddressKind::V6(address) => {
            let host = format_v6(*address.ip());
            (host, address.port(), address.flowinfo(), address.scope_id())
                .into_pyobject(py)
                .map(Bound::into_any)
        }
        AddressKind::Path(path) => Ok(OsStr::from_bytes(path).into_pyobject(py)?.into_any()),
        AddressKind::Abstract(name) => Ok(new_bytes(py, name)?.into_any()),
        AddressKind::Other(family) => {
            (family, new_bytes(py, &address[2..])?).into_pyobject(py).map(Bound::into_any)
        }
    }
}

/// How an IPv6 socket treats an IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// As an address of another family, like the standard class.
    Strict,
    /// As an IPv4-mapped address (RFC 4291, section 2.5.5.2), with which it reaches IPv4 peers.
    Mapped,
}

/// Parses an address like the standard module does for a socket of `family`, with the same
/// exceptions; `caller` is the method that they name.
///
/// Numeric hosts do not use the resolver; names are resolved detached from the interpreter.
pub(crate) fn parse(
    family: c_int,
    object: &Bound<'_, PyAny>,
    caller: &str,
    mapping: Mapping,
) -> Result<Address> {
    match family {
        libc::AF_INET => inet(object, caller),
        libc::AF_INET6 => inet6(object, caller, mapping),
        libc::AF_UNIX => unix(object),
        _ => Err(PyOSError::new_err(format!("{caller}(): bad family")).into()),
    }
}

fn inet(object: &Bound<'_, PyAny>, caller: &str) -> Result<Address> {
    let address = tuple(object, caller, "AF_INET")?;
    if address.len() != 2 {
        return Err(type_error("AF_INET address must be a pair (host, port)"));
    }
    let port = port(&address.get_item(1)?, caller)?;
    let resolved = resolve(&address.get_item(0)?, libc::AF_INET)?;
    match resolved.kind() {
        AddressKind::V4(resolved) => {
            Ok(SocketAddrV4::new(*resolved.ip(), port.get(caller)?).into())
        }
        _ => Err(foreign()),
    }
}

fn inet6(object: &Bound<'_, PyAny>, caller: &str, mapping: Mapping) -> Result<Address> {
    let address = tuple(object, caller, "AF_INET6")?;
    if !(2..=4).contains(&address.len()) {
        return Err(type_error(
            "AF_INET6 address must be a tuple (host, port[, flowinfo[, scopeid]])",
        ));
    }
    let port = port(&address.get_item(1)?, caller)?;
    let word = |index| match address.get_item(index) {
        Ok(item) => masked_word(&item),
        Err(_) => Ok(0),
    };
    let (flow, scope) = (word(2)?, word(3)?);
    let host = address.get_item(0)?;
    let resolved = match mapped(&host, mapping) {
        Some(mapped) => mapped,
        None => resolve(&host, libc::AF_INET6)?,
    };
    let AddressKind::V6(resolved) = resolved.kind() else { return Err(foreign()) };
    let port = port.get(caller)?;
    if flow > 0xfffff {
        let message = format!("{caller}(): flowinfo must be 0-1048575.");
        return Err(PyOverflowError::new_err(message).into());
    }
    // The scope in the host ("fe80::1%eth0") applies if the tuple has none.
    let scope = if scope == 0 { resolved.scope_id() } else { scope };
    Ok(SocketAddrV6::new(*resolved.ip(), port, flow, scope).into())
}

/// A numeric IPv4 host as an IPv4-mapped address.
fn mapped(host: &Bound<'_, PyAny>, mapping: Mapping) -> Option<Address> {
    if mapping == Mapping::Strict {
        return None;
    }
    let ip: Ipv4Addr = host.cast::<PyString>().ok()?.to_str().ok()?.parse().ok()?;
    Some(v6(ip.to_ipv6_mapped(), 0))
}

fn unix(object: &Bound<'_, PyAny>) -> Result<Address> {
    if let Ok(path) = object.cast::<PyString>() {
        let path = path.py().import("os")?.call_method1("fsencode", (path,))?;
        return Ok(Address::unix(path.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes())?);
    }
    let buffer = Readable::new(object)?;
    if buffer.len() > size_of::<libc::sockaddr_un>() {
        return Err(PathTooLong.into());
    }
    Ok(Address::unix(&buffer.copy()?)?)
}

fn tuple<'a, 'py>(
    object: &'a Bound<'py, PyAny>,
    caller: &str,
    family: &str,
) -> Result<&'a Bound<'py, PyTuple>> {
    object.cast().map_err(|_| {
        let found = TypeName(object);
        type_error(&format!("{caller}(): {family} address must be tuple, not {found}"))
    })
}

fn type_error(message: &str) -> Error {
    PyTypeError::new_err(message.to_owned()).into()
}

fn foreign() -> Error {
    PyOSError::new_err("unknown address family").into()
}

/// An `int` that may be out of range. The standard module resolves the host before it checks the
/// port, so a bad host is reported before a bad port.
struct Port(c_int);

fn port(object: &Bound<'_, PyAny>, caller: &str) -> Result<Port> {
    object.extract().map(Port).map_err(|error| {
        if error.is_instance_of::<PyOverflowError>(object.py()) {
            return bad_port(caller);
        }
        error.into()
    })
}

impl Port {
    fn get(&self, caller: &str) -> Result<u16> {
        self.0.try_into().map_err(|_| bad_port(caller))
    }
}

fn bad_port(caller: &str) -> Error {
    PyOverflowError::new_err(format!("{caller}(): port must be 0-65535.")).into()
}

/// Reads an `unsigned int` like the standard module: the low 32 bits of any integer. From Python
/// 3.15 on, that module warns if the integer does not fit.
pub(super) fn masked_word(object: &Bound<'_, PyAny>) -> Result<u32> {
    let py = object.py();
    // SAFETY: attached, with an object; the result is a new reference or an exception.
    let int = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyNumber_Index(object.as_ptr()))? };
    if let Ok(value) = int.extract::<i64>()
        && (i64::from(i32::MIN)..=i64::from(u32::MAX)).contains(&value)
    {
        return Ok(value as u32);
    }
    if py.version_info() >= (3, 15) {
        let category = py.get_type::<PyDeprecationWarning>();
        PyErr::warn(py, &category, c"integer value out of range", 1)?;
    }
    // SAFETY: attached, with an int, for which this cannot fail.
    Ok(unsafe { ffi::PyLong_AsUnsignedLongMask(int.as_ptr()) } as u32)
}

/// The IP address of a host, with the port zero.
fn resolve(host: &Bound<'_, PyAny>, family: c_int) -> Result<Address> {
    if let Ok(host) = host.cast::<PyString>() {
        // The str caches its UTF-8 form, which for ASCII, the usual case, is the str itself.
        return match host.to_str() {
            Ok(ascii) if ascii.is_ascii() => resolve_bytes(host.py(), ascii.as_bytes(), family),
            _ => match host.call_method1(intern!(host.py(), "encode"), ("idna",)) {
                Ok(encoded) => {
                    let encoded = encoded.cast::<PyBytes>().map_err(PyErr::from)?;
                    resolve_bytes(host.py(), encoded.as_bytes(), family)
                }
                Err(_) => Err(type_error("encoding of hostname failed")),
            },
        };
    }
    if let Ok(host) = host.cast::<PyBytes>() {
        return resolve_bytes(host.py(), host.as_bytes(), family);
    }
    if let Ok(host) = host.cast::<PyByteArray>() {
        return resolve_bytes(host.py(), &host.to_vec(), family);
    }
    let found = TypeName(host);
    Err(type_error(&format!("str, bytes or bytearray expected, not {found}")))
}

fn resolve_bytes(py: Python<'_>, host: &[u8], family: c_int) -> Result<Address> {
    let Ok(terminated) = CString::new(host) else {
        return Err(type_error("host name must not contain null character"));
    };
    let text = std::str::from_utf8(host).unwrap_or_default();
    match (text, family) {
        ("", _) if !host.is_empty() => {} // not UTF-8
        ("", libc::AF_INET) => return Ok(v4(Ipv4Addr::UNSPECIFIED)),
        ("", _) => return Ok(v6(Ipv6Addr::UNSPECIFIED, 0)),
        ("<broadcast>" | "255.255.255.255", libc::AF_INET) => return Ok(v4(Ipv4Addr::BROADCAST)),
        ("<broadcast>" | "255.255.255.255", _) => {
            return Err(PyOSError::new_err("address family mismatched").into());
        }
        (_, libc::AF_INET) => {
            if let Ok(ip) = text.parse() {
                return Ok(v4(ip));
            }
        }
        _ => {
            if let Some((ip, scope)) = numeric_v6(text) {
                return Ok(v6(ip, scope));
            }
        }
    }
    py.detach(|| names::resolve(&terminated, family)).map_err(Error::from)
}

/// Parses a numeric IPv6 host with its scope: `fe80::1%eth0` or `fe80::1%2`. A scope on an address
/// that cannot have one is left to the C library.
fn numeric_v6(host: &str) -> Option<(Ipv6Addr, u32)> {
    let Some((ip, scope)) = host.split_once('%') else { return Some((host.parse().ok()?, 0)) };
    let ip: Ipv6Addr = ip.parse().ok()?;
    let is_of_link_group = ip.is_multicast() && matches!(ip.octets()[1] & 0xf, 1 | 2);
    if !ip.is_unicast_link_local() && !is_of_link_group {
        return None;
    }
    Some((ip, interface_index(&CString::new(scope).ok()?).ok()?))
}

fn v4(ip: Ipv4Addr) -> Address {
    SocketAddrV4::new(ip, 0).into()
}

fn v6(ip: Ipv6Addr, scope: u32) -> Address {
    SocketAddrV6::new(ip, 0, 0, scope).into()
}

/// Caches the addresses that a socket uses repeatedly, as Python's tuples and as the kernel's
/// bytes, so a busy peer costs neither an allocation nor a parse.
///
/// If another thread is using a table, it is skipped: waiting would cost more than the cache saves.
pub(crate) struct AddressCache {
    received: Mutex<RecentTable<CachedAddress>>,
    /// By the object's address, which is that of another object once it is freed.
    sent: Mutex<RecentTable<CachedAddress>>,
}

impl Default for AddressCache {
    fn default() -> Self {
        Self { received: Mutex::default(), sent: Mutex::new(RecentTable::small()) }
    }
}

struct CachedAddress {
    key: AddressKey,
    object: Py<PyAny>,
}

/// The bytes of an address of IP's lengths, which are cheap to compare. Others are not cached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct AddressKey {
    /// With zeroes at the end.
    bytes: [u8; 32],
    len: u8,
}

impl AddressKey {
    #[inline]
    pub(crate) fn of(address: &[u8]) -> Option<Self> {
        const V4: usize = size_of::<libc::sockaddr_in>();
        const V6: usize = size_of::<libc::sockaddr_in6>();
        let mut bytes = [0; 32];
        // Copying a constant number of bytes needs no call.
        match address.len() {
            V4 => bytes[..V4].copy_from_slice(&address[..V4]),
            V6 => bytes[..V6].copy_from_slice(&address[..V6]),
            _ => return None,
        }
        Some(Self { bytes, len: address.len() as u8 })
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Family and port are in the first four bytes, an IPv4 host in the next four, and the varying
    /// end of an IPv6 host further on.
    fn hash(&self) -> u64 {
        let (words, _) = self.bytes.as_chunks();
        let [first, second, third, _] = [0, 1, 2, 3].map(|at| u64::from_ne_bytes(words[at]));
        first ^ second.rotate_left(17) ^ third.rotate_left(31)
    }
}

impl AddressCache {
    /// Forgets all addresses, and frees the tables.
    pub(crate) fn clear(&self, _: Python<'_>) {
        // The locks are free while Python frees the addresses.
        let received = self.received.try_lock().map(|mut table| mem::take(&mut *table));
        let sent =
            self.sent.try_lock().map(|mut table| mem::replace(&mut *table, RecentTable::small()));
        drop((received, sent));
    }

    /// As [`to_python`].
    pub(crate) fn object<'py>(
        &self,
        py: Python<'py>,
        address: &[u8],
    ) -> PyResult<Bound<'py, PyAny>> {
        match AddressKey::of(address) {
            Some(key) => self.object_of(py, &key),
            None => to_python(py, address),
        }
    }

    /// As [`to_python`], for the address with a key.
    pub(crate) fn object_of<'py>(
        &self,
        py: Python<'py>,
        key: &AddressKey,
    ) -> PyResult<Bound<'py, PyAny>> {
        let hash = key.hash();
        if let Ok(table) = self.received.try_lock()
            && let Some(entry) = table.get(hash, |entry| entry.key == *key)
        {
            return Ok(entry.object.bind(py).clone());
        }
        // The lock is free while Python allocates, because a finalizer may run and call this.
        let object = to_python(py, key.as_bytes())?;
        if let Ok(mut table) = self.received.try_lock() {
            table.insert(hash, CachedAddress { key: *key, object: object.clone().unbind() });
        }
        Ok(object)
    }

    /// As [`parse`].
    pub(crate) fn parse(
        &self,
        family: c_int,
        object: &Bound<'_, PyAny>,
        caller: &str,
        mapping: Mapping,
    ) -> Result<Address> {
        let hash = object.as_ptr() as u64 >> 4;
        if let Ok(table) = self.sent.try_lock()
            && let Some(entry) = table.get(hash, |entry| entry.object.is(object))
        {
            return Ok(Address::from_bytes(entry.key.as_bytes()));
        }
        let address = parse(family, object, caller, mapping)?;
        if is_constant(family, object)
            && let Some(key) = AddressKey::of(address.as_bytes())
            && let Ok(mut table) = self.sent.try_lock()
        {
            table.insert(hash, CachedAddress { key, object: object.clone().unbind() });
        }
        Ok(address)
    }
}

/// Whether an address object always has the same meaning: a tuple of a host that is numeric in the
/// family, and of `int`s that fit, so that no call warns of them. (A name may resolve to something
/// else tomorrow, a bytearray may change, and only some methods of an IPv6 socket accept an IPv4
/// address.)
fn is_constant(family: c_int, object: &Bound<'_, PyAny>) -> bool {
    let is_numeric = |host: &str| match family {
        libc::AF_INET => host.parse::<Ipv4Addr>().is_ok(),
        _ => host.parse::<Ipv6Addr>().is_ok(),
    };
    object.cast_exact::<PyTuple>().is_ok_and(|address| {
        address.iter_borrowed().enumerate().all(|(index, item)| match index {
            0 => {
                item.cast_exact::<PyString>().is_ok_and(|host| host.to_str().is_ok_and(&is_numeric))
            }
            _ => item.cast_exact::<PyInt>().is_ok_and(|number| number.extract::<u32>().is_ok()),
        })
    })
}
