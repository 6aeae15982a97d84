//! The PROXY protocol.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::error::{Error, Result};
use super::guard::networks;
use super::socket::Socket;
use crate::net::guard::Networks;
use crate::net::proxy_protocol::{Header, Proxies};

/// Make a socket trust the proxies in some networks. Without a socket, only check the arguments.
#[pyfunction]
#[pyo3(signature = (socket, proxies, idle=None, /))]
pub(crate) fn trust_proxies(
    socket: Option<&Bound<'_, Socket>>,
    proxies: &Bound<'_, PyAny>,
    idle: Option<f64>,
) -> Result<()> {
    let networks = Networks::new(Some(&networks(proxies, "proxy")?), &[]).map_err(Error::from)?;
    let idle = idle.map(|idle| Duration::try_from_secs_f64(idle).unwrap_or(Duration::MAX));
    if let Some(socket) = socket {
        socket.get().socket()?.set_proxies(Proxies::new(networks, idle))?;
    }
    Ok(())
}

/// The header of a datagram from a client to a server.
#[pyfunction]
#[pyo3(signature = (client, server, /))]
pub(crate) fn proxy_header(
    py: Python<'_>,
    client: (String, u16),
    server: (String, u16),
) -> PyResult<Bound<'_, PyBytes>> {
    let (mut client, mut server) = (parse(&client)?, parse(&server)?);
    if client.is_ipv4() != server.is_ipv4() {
        // A header has addresses of one family.
        (client, server) = (as_ipv6(client), as_ipv6(server));
    }
    let header = Header::encode(client, server).unwrap_or_default();
    Ok(PyBytes::new(py, &header))
}

fn parse((host, port): &(String, u16)) -> PyResult<SocketAddr> {
    let (host, _scope) = host.split_once('%').unwrap_or((host, ""));
    let ip: IpAddr = host
        .parse()
        .map_err(|_| PyValueError::new_err(format!("the address must be numeric, not {host:?}")))?;
    Ok(SocketAddr::new(ip.to_canonical(), *port))
}

fn as_ipv6(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}
