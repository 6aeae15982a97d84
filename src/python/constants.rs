//! Constants of the kernel's UDP path that the standard module lacks, with the names from the
//! kernel's headers. Their values depend on the architecture, so they come from libc.

use std::ffi::c_int;

use pyo3::prelude::*;
use pyo3::types::PyDict;

macro_rules! constants {
    ($($name:ident),* $(,)?) => {
        const CONSTANTS: &[(&str, c_int)] = &[$((stringify!($name), libc::$name as c_int)),*];
    };
}

constants![
    // socket(7)
    SO_ATTACH_BPF,
    SO_ATTACH_FILTER,
    SO_ATTACH_REUSEPORT_CBPF,
    SO_ATTACH_REUSEPORT_EBPF,
    SO_BINDTOIFINDEX,
    SO_BUSY_POLL,
    SO_BUSY_POLL_BUDGET,
    SO_COOKIE,
    SO_DETACH_FILTER,
    SO_DETACH_REUSEPORT_BPF,
    SO_INCOMING_CPU,
    SO_INCOMING_NAPI_ID,
    SO_LOCK_FILTER,
    SO_MAX_PACING_RATE,
    SO_MEMINFO,
    SO_NETNS_COOKIE,
    SO_NO_CHECK,
    SO_PREFER_BUSY_POLL,
    SO_RCVBUFFORCE,
    SO_RXQ_OVFL,
    SO_SELECT_ERR_QUEUE,
    SO_SNDBUFFORCE,
    SO_TIMESTAMP,
    SO_TIMESTAMPING,
    SO_TIMESTAMPNS,
    SO_TXTIME,
    SO_ZEROCOPY,
    SCM_TIMESTAMP,
    SCM_TIMESTAMPING,
    SCM_TIMESTAMPNS,
    SCM_TXTIME,
    // timestamping, for SO_TIMESTAMPING
    SOF_TIMESTAMPING_OPT_ID,
    SOF_TIMESTAMPING_OPT_TSONLY,
    SOF_TIMESTAMPING_RAW_HARDWARE,
    SOF_TIMESTAMPING_RX_HARDWARE,
    SOF_TIMESTAMPING_RX_SOFTWARE,
    SOF_TIMESTAMPING_SOFTWARE,
    SOF_TIMESTAMPING_TX_ACK,
    SOF_TIMESTAMPING_TX_HARDWARE,
    SOF_TIMESTAMPING_TX_SCHED,
    SOF_TIMESTAMPING_TX_SOFTWARE,
    // ip(7)
    IP_BIND_ADDRESS_NO_PORT,
    IP_CHECKSUM,
    IP_FREEBIND,
    IP_MINTTL,
    IP_MSFILTER,
    IP_MTU,
    IP_MTU_DISCOVER,
    IP_MULTICAST_ALL,
    IP_NODEFRAG,
    IP_ORIGDSTADDR,
    IP_PKTINFO,
    IP_PMTUDISC_DO,
    IP_PMTUDISC_DONT,
    IP_PMTUDISC_INTERFACE,
    IP_PMTUDISC_OMIT,
    IP_PMTUDISC_PROBE,
    IP_PMTUDISC_WANT,
    IP_RECVERR,
    IP_RECVFRAGSIZE,
    IP_RECVORIGDSTADDR,
    IP_RECVTTL,
    IP_TRANSPARENT,
    IP_UNICAST_IF,
    MCAST_BLOCK_SOURCE,
    MCAST_EXCLUDE,
    MCAST_INCLUDE,
    MCAST_JOIN_GROUP,
    MCAST_JOIN_SOURCE_GROUP,
    MCAST_LEAVE_GROUP,
    MCAST_LEAVE_SOURCE_GROUP,
    MCAST_MSFILTER,
    MCAST_UNBLOCK_SOURCE,
    // ipv6(7)
    IPV6_ADDR_PREFERENCES,
    IPV6_AUTOFLOWLABEL,
    IPV6_FREEBIND,
    IPV6_MINHOPCOUNT,
    IPV6_MTU,
    IPV6_MTU_DISCOVER,
    IPV6_MULTICAST_ALL,
    IPV6_ORIGDSTADDR,
    IPV6_PMTUDISC_DO,
    IPV6_PMTUDISC_DONT,
    IPV6_PMTUDISC_INTERFACE,
    IPV6_PMTUDISC_OMIT,
    IPV6_PMTUDISC_PROBE,
    IPV6_PMTUDISC_WANT,
    IPV6_RECVERR,
    IPV6_RECVFRAGSIZE,
    IPV6_RECVORIGDSTADDR,
    IPV6_TRANSPARENT,
    IPV6_UNICAST_IF,
    // udp(7)
    UDP_CORK,
    UDP_ENCAP,
    UDP_GRO,
    UDP_NO_CHECK6_RX,
    UDP_NO_CHECK6_TX,
    UDP_SEGMENT,
    // recvmsg(2), recvmmsg(2), send(2)
    MSG_WAITFORONE,
    MSG_ZEROCOPY,
    // the error queue, recvmsg(2) with MSG_ERRQUEUE
    SO_EE_ORIGIN_ICMP,
    SO_EE_ORIGIN_ICMP6,
    SO_EE_ORIGIN_LOCAL,
    SO_EE_ORIGIN_NONE,
    SO_EE_ORIGIN_TIMESTAMPING,
];

/// Adds `CONSTANTS`, a dict of names and numbers.
pub(crate) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let constants = PyDict::new(module.py());
    for (name, number) in CONSTANTS {
        constants.set_item(name, number)?;
    }
    module.add("CONSTANTS", constants)
}
