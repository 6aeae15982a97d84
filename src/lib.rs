//! tomada: UDP sockets for Python on Linux.
//!
//! [`net`] is the engine, in pure Rust. The `python` layer on top of it is the Python module
//! `tomada._core`.

#[cfg(not(target_os = "linux"))]
compile_error!("tomada needs Linux: it is built on recvmmsg, sendmmsg, UDP_GRO and UDP_SEGMENT");

pub mod net;
#[cfg(feature = "python")]
mod python;

/// The Python module.
#[cfg(feature = "python")]
#[pyo3::pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use crate::python::batch::Batch;
    #[pymodule_export]
    use crate::python::counters::{
        GuardStats, ServerCounters, ServerStats, SinkCounters, SinkStats, Stats,
    };
    #[cfg(feature = "dtls")]
    #[pymodule_export]
    use crate::python::dtls::{DtlsContext, DtlsSession};
    #[cfg(feature = "dtls")]
    #[pymodule_export]
    use crate::python::dtls_endpoint::DtlsEndpoint;
    #[pymodule_export]
    use crate::python::event_loop::{LoopCore, ReadHub, ReceiveWindow};
    #[pymodule_export]
    use crate::python::guard::Guard;
    #[pymodule_export]
    use crate::python::link::{LinkCore, PathCore};
    #[pymodule_export]
    use crate::python::proxy_protocol::{proxy_header, trust_proxies};
    #[pymodule_export]
    use crate::python::records::DatagramError;
    #[pymodule_export]
    use crate::python::server::{ServerCore, SignalHandlers, end_with_parent, steer, steer_by_key};
    #[pymodule_export]
    use crate::python::socket::datagram::Datagram;
    #[pymodule_export]
    use crate::python::socket::{Socket, kind_of};
    #[pymodule_export]
    use crate::python::transport::TransportCore;

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        #[cfg(feature = "dtls")]
        module.add("OPENSSL_VERSION", crate::python::dtls::openssl_version())?;
        #[cfg(feature = "dtls")]
        module.add("OPENSSL_VERSION_NUMBER", crate::python::dtls::openssl_version_number())?;
        crate::python::constants::add_to(module)
    }
}
