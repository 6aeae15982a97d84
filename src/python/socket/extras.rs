//! Features beyond the standard class: metadata, the error queue, counters, groups, and tuning.

use std::ffi::c_int;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::Socket;
use super::datagram::Datagram;
use super::interface::{index_of, parse_ip};
use super::many::Senders;
use crate::net::cmsg::ControlBuffer;
use crate::net::error_queue::ErrorMessage;
use crate::net::multicast::{Change, Membership};
use crate::net::{Address, Interest, NextReceive, Received, Source, may_be_of_source};
use crate::python::buffer::{Readable, new_bytes};
use crate::python::counters::Stats;
use crate::python::error::{Error, Result, strerror};
use crate::python::records::DatagramError;

/// The maximum number of error queue entries that one call takes.
const MOST_ERRORS: usize = 1024;
/// The longest time to collect datagrams. A greater number is not one of seconds.
const LONGEST_WINDOW: Duration = Duration::from_secs(60);

#[pymethods]
impl Socket {
    /// Receive a datagram with its metadata.
    #[pyo3(signature = (flags=0))]
    fn recv_datagram(slf: &Bound<'_, Self>, flags: c_int) -> Result<Datagram> {
        Self::receive_datagram(slf, flags, |_| {})
    }

    /// Wait for one datagram, then take all that are queued with their metadata, up to a maximum.
    #[pyo3(signature = (max_datagrams=64, flags=0))]
    fn recv_datagrams<'py>(
        slf: &Bound<'py, Self>,
        max_datagrams: isize,
        flags: c_int,
    ) -> Result<Bound<'py, PyList>> {
        let bound = |datagram| Bound::new(slf.py(), datagram);
        let datagrams = Self::receive_datagrams(slf, max_datagrams, flags, |_| {}, bound)?;
        slf.get().to_list(slf.py(), datagrams)
    }

    /// Return the kernel's reports about datagrams that failed on their way.
    fn errors(&self, py: Python<'_>) -> Result<Vec<DatagramError>> {
        let socket = self.socket()?;
        let (mut errors, mut others) = (Vec::new(), Vec::new());
        let mut end = Ok(());
        // The kernel may add entries as fast as they are taken.
        for _ in 0..MOST_ERRORS {
            match socket.with(|fd| socket.take_error_message(fd)) {
                Ok(message) if message.decode().is_none() => others.push(message),
                Ok(message) => errors.extend(self.describe(py, message)?),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    end = Err(error);
                    break;
                }
            }
        }
        // Timestamps of sent datagrams are for recvmsg with MSG_ERRQUEUE.
        socket.put_back_error_messages(others);
        match end {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error.into()),
            _ => Ok(errors),
        }
    }

    /// Return the socket's counters.
    fn stats(&self) -> Stats {
        self.inner.get().map_or_else(Stats::default, |socket| {
            Stats::of_socket(socket.counters().read(), socket.drops())
        })
    }

    /// Join a multicast group.
    #[pyo3(signature = (group, interface=None, source=None))]
    fn join_group(
        &self,
        group: &str,
        interface: Option<&Bound<'_, PyAny>>,
        source: Option<&str>,
    ) -> Result<()> {
        let membership = Self::membership(group, interface, source)?;
        let socket = self.socket()?;
        // Otherwise the socket would also receive datagrams for groups that other sockets joined.
        let (level, all) = match membership.group {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL),
        };
        if !socket.is_set_by_user(level, all) {
            match socket.set_int_option(level, all, 0) {
                Err(error) if error.raw_os_error() != Some(libc::ENOPROTOOPT) => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        self.change_membership(&membership, Change::Join, group)
    }

    /// Leave a multicast group.
    #[pyo3(signature = (group, interface=None, source=None))]
    fn leave_group(
        &self,
        group: &str,
        interface: Option<&Bound<'_, PyAny>>,
        source: Option<&str>,
    ) -> Result<()> {
        let membership = Self::membership(group, interface, source)?;
        self.change_membership(&membership, Change::Leave, group)
    }

    /// How long to spin before sleeping, in seconds.
    #[getter]
    fn spin(&self) -> f64 {
        Duration::from_nanos(self.spin.load(Ordering::Relaxed)).as_secs_f64()
    }

    #[setter]
    fn set_spin(&self, seconds: f64) -> Result<()> {
        let spin = Duration::try_from_secs_f64(seconds)
            .ok()
            .and_then(|spin| u64::try_from(spin.as_nanos()).ok());
        let message = || format!("spin must be a number of seconds, not {seconds}");
        let spin = spin.ok_or_else(|| PyValueError::new_err(message()))?;
        self.spin.store(spin, Ordering::Relaxed);
        Ok(())
    }

    /// How long to collect datagrams after the first one, in seconds.
    #[getter]
    fn coalesce(&self) -> f64 {
        self.inner.get().map_or(0.0, |socket| socket.coalesce().as_secs_f64())
    }

    #[setter]
    fn set_coalesce(&self, seconds: f64) -> Result<()> {
        let window = Duration::try_from_secs_f64(seconds).ok();
        let window = window.filter(|window| *window <= LONGEST_WINDOW);
        let message =
            || format!("coalesce must be a number of seconds from 0 to 60, not {seconds}");
        let window = window.ok_or_else(|| PyValueError::new_err(message()))?;
        self.socket()?.set_coalesce(window);
        Ok(())
    }

    /// Whether a call that takes many datagrams has to wait before it tries.
    #[getter]
    fn _collects(&self) -> bool {
        let socket = self.inner.get();
        socket.is_some_and(|socket| socket.next_receive() != NextReceive::Now)
    }

    /// Whether the kernel coalesces datagrams, and receives split them.
    #[getter]
    fn gro(&self) -> Result<bool> {
        Ok(self.socket()?.gro())
    }

    #[setter]
    fn set_gro(&self, is_on: bool) -> Result<()> {
        let socket = self.socket()?;
        let result = socket.set_gro(is_on);
        socket.share_backlog();
        result.map_err(|error| match error.raw_os_error() {
            Some(errno @ (libc::EOPNOTSUPP | libc::ENOPROTOOPT)) => PyOSError::new_err((
                errno,
                "Operation not supported: gro needs AF_INET or AF_INET6, and Linux 5.0",
            ))
            .into(),
            _ => error.into(),
        })
    }

    /// The highest rate to send at, in bytes per second, or None.
    #[getter]
    fn pacing(&self) -> Result<Option<u64>> {
        let mut rate = [0; size_of::<u64>()];
        self.socket()?.option(libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &mut rate)?;
        let rate = u64::from_ne_bytes(rate);
        Ok((rate != u64::MAX).then_some(rate))
    }

    #[setter]
    fn set_pacing(&self, rate: Option<&Bound<'_, PyAny>>) -> Result<()> {
        let rate = match rate {
            None => u64::MAX,
            Some(rate) => {
                rate.extract().ok().filter(|rate| (1..u64::MAX).contains(rate)).ok_or_else(
                    || PyValueError::new_err("pacing must be at least 1 byte per second, or None"),
                )?
            }
        };
        let (level, name) = (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE);
        Ok(self.socket()?.set_option(level, name, &rate.to_ne_bytes())?)
    }

    /// The number of datagrams in the receive backlog.
    #[getter]
    fn pending(&self) -> usize {
        self.inner.get().map_or(0, crate::net::Socket::backlog_len)
    }
}

impl Socket {
    /// As [`recv_datagram`](Self::recv_datagram); `note` gets the datagram.
    pub(crate) fn receive_datagram(
        slf: &Bound<'_, Self>,
        flags: c_int,
        note: impl FnMut(&Received<'_>),
    ) -> Result<Datagram> {
        let mut datagrams = Self::receive_datagrams(slf, 1, flags, note, Ok)?;
        // receive_many waits for at least one.
        datagrams.pop().ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock).into())
    }

    fn receive_datagrams<T>(
        slf: &Bound<'_, Self>,
        max_datagrams: isize,
        flags: c_int,
        mut note: impl FnMut(&Received<'_>),
        convert: impl Fn(Datagram) -> PyResult<T>,
    ) -> Result<Vec<T>> {
        let this = slf.get();
        this.socket()?.request_metadata()?;
        let mut senders = Senders::new(&this.addresses);
        this.receive_many(slf.py(), max_datagrams, flags, |received| {
            let address = senders.object(slf.py(), received.from)?;
            let data = new_bytes(slf.py(), received.payload)?;
            let converted = convert(Datagram::new(slf, received, data, address))?;
            note(received);
            Ok(converted)
        })
    }

    /// Sends a datagram from a given local address.
    pub(crate) fn reply(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        to: Option<&Address>,
        source: Option<Source>,
        flags: c_int,
    ) -> Result<usize> {
        let data = Readable::new(data)?;
        let memory = [data.slice()];
        let mut control = ControlBuffer::EMPTY;
        if let Some(source) = source {
            source.encode(&mut control);
        }
        let sent =
            self.transfer(py, &mut self.patience(), Interest::Write, flags, |socket, fd, flags| {
                socket.send_message(fd, &memory, to, control.as_bytes(), flags)
            });
        match (sent, source) {
            (Err(Error::Os(error)), Some(Source { address, .. })) if may_be_of_source(&error) => {
                let (errno, reason) = (error.raw_os_error(), strerror(&error));
                let text = format!(
                    "{reason}: there is no route to the peer from {address}, the address it sent to; \
                     if this machine no longer has that address, use sendto()"
                );
                Err(Error::Python(PyOSError::new_err((errno, text))))
            }
            (sent, _) => sent,
        }
    }

    /// Describes an entry of the error queue, if it is an error.
    pub(crate) fn describe(
        &self,
        py: Python<'_>,
        message: ErrorMessage,
    ) -> Result<Option<DatagramError>> {
        let Some(error) = message.decode() else { return Ok(None) };
        let peer = self.addresses.object(py, message.peer.as_bytes())?.unbind();
        let data = new_bytes(py, &message.payload)?.unbind();
        Ok(Some(DatagramError::new(peer, &error, data)))
    }

    fn membership(
        group: &str,
        interface: Option<&Bound<'_, PyAny>>,
        source: Option<&str>,
    ) -> Result<Membership> {
        let address = parse_ip(group, "group")?;
        if !address.is_multicast() {
            let message = format!("{group} is not a multicast group (224.0.0.0/4 or ff00::/8)");
            return Err(PyValueError::new_err(message).into());
        }
        let source = source.map(|source| parse_ip(source, "source")).transpose()?;
        if source.is_some_and(|source| source.is_ipv4() != address.is_ipv4()) {
            let message = "source and group belong to different address families";
            return Err(PyValueError::new_err(message).into());
        }
        Ok(Membership { group: address, interface: index_of(interface)?, source })
    }

    fn change_membership(
        &self,
        membership: &Membership,
        change: Change,
        group: &str,
    ) -> Result<()> {
        let (level, name, value) = membership.option(change);
        let Err(error) = self.socket()?.set_option(level, name, &value) else { return Ok(()) };
        let hint = match (error.raw_os_error(), membership.group) {
            (Some(libc::ENOBUFS), IpAddr::V4(_)) => {
                "the socket is in as many groups as sysctl net.ipv4.igmp_max_memberships allows; \
                 raise it, or use another socket"
            }
            (Some(libc::ENOBUFS), IpAddr::V6(_)) => {
                "the socket's option memory is used up; raise sysctl net.core.optmem_max, or use \
                 another socket"
            }
            (Some(libc::ENODEV), _) if membership.interface == 0 => {
                "there is no route to the group; name an interface"
            }
            (Some(libc::ENODEV), _) => "there is no such interface",
            (Some(libc::EADDRINUSE), _) => "the socket is already in the group",
            (Some(libc::EADDRNOTAVAIL), _) => "the socket is not in the group on that interface",
            (Some(libc::EINVAL), _) if membership.source.is_some() => {
                "a socket cannot join a group both for all sources and for one"
            }
            (Some(libc::ENOPROTOOPT), _) => {
                "the group and the socket belong to different address families"
            }
            _ => return Err(error.into()),
        };
        let verb = if change == Change::Join { "join" } else { "leave" };
        let text = format!("cannot {verb} {group}: {hint}");
        Err(PyOSError::new_err((error.raw_os_error(), text)).into())
    }
}
