"""Network devices: their queueing disciplines, and the timestamps that their hardware can make."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import NamedTuple

# linux/netlink.h, linux/rtnetlink.h: the messages that list the disciplines.
_GET_QDISC = 38
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_QDISC = struct.Struct("=BxxxiIII")
_ATTRIBUTE = struct.Struct("=HH")
_KIND = 1

# linux/sockios.h, linux/ethtool.h, linux/net_tstamp.h
_ETHTOOL = 0x8946
_SET_TIMESTAMPS, _GET_TIMESTAMPS = 0x89B0, 0x89B1
_ETHTOOL_GET_TS_INFO = 0x41
_TX_HARDWARE, _TX_SOFTWARE, _RX_HARDWARE, _RX_SOFTWARE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TX_ON, _FILTER_NONE, _FILTER_ALL = 1, 0, 1


class Timestamping(NamedTuple):
    """Which timestamps a device and its driver can make, for datagrams sent and received."""

    transmit_software: bool
    transmit_hardware: bool
    receive_software: bool
    receive_hardware: bool
    clock: int | None
    """The number of the device's clock: 0 for ``/dev/ptp0``."""


class _TimestampInfo(ctypes.Structure):
    """``struct ethtool_ts_info``."""

    _fields_ = (
        ("command", ctypes.c_uint32),
        ("kinds", ctypes.c_uint32),
        ("clock", ctypes.c_int32),
        ("transmit", ctypes.c_uint32),
        ("reserved_transmit", ctypes.c_uint32 * 3),
        ("filters", ctypes.c_uint32),
        ("reserved_filters", ctypes.c_uint32 * 3),
    )


class _TimestampConfig(ctypes.Structure):
    """``struct hwtstamp_config``."""

    _fields_ = (
        ("flags", ctypes.c_int),
        ("transmit", ctypes.c_int),
        ("filter", ctypes.c_int),
    )


def queueing_disciplines() -> dict[str, list[str]]:
    """Return the names of each device's queueing disciplines (``tc(8)``), the root's first."""
    found: dict[str, list[str]] = {name: [] for _, name in socket.if_nameindex()}
    body = _QDISC.pack(0, 0, 0, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
        netlink.send(_HEADER.pack(_HEADER.size + len(body), _GET_QDISC, _REQUEST_DUMP, 0, 0) + body)
        while True:
            reply = netlink.recv(1 << 16)
            while reply:
                length, kind, *_ = _HEADER.unpack_from(reply)
                if kind in {_ERROR, _DONE}:
                    return found
                index, name = _parse(reply[_HEADER.size : length])
                if name is not None:
                    found.setdefault(socket.if_indextoname(index), []).append(name)
                reply = reply[_aligned(length) :]


def _parse(message: bytes) -> tuple[int, str | None]:
    """Return the device's index and the name of a discipline."""
    _, index, *_ = _QDISC.unpack_from(message)
    at = _QDISC.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _KIND:
            return index, message[at + _ATTRIBUTE.size : at + length].rstrip(b"\0").decode()
        at += _aligned(length)
    return index, None


def _aligned(length: int) -> int:
    return length + 3 & ~3


def timestamping(device: str) -> Timestamping:
    """Return which timestamps a device can make (``ETHTOOL_GET_TS_INFO``).

    :raises OSError: ``ENODEV``: there is no such device.
    """
    info = _TimestampInfo(command=_ETHTOOL_GET_TS_INFO)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _call(sock.fileno(), _ETHTOOL, device, info)
    return Timestamping(
        transmit_software=bool(info.kinds & _TX_SOFTWARE),
        transmit_hardware=bool(info.kinds & _TX_HARDWARE),
        receive_software=bool(info.kinds & _RX_SOFTWARE),
        receive_hardware=bool(info.kinds & _RX_HARDWARE),
        clock=None if info.clock < 0 else info.clock,
    )


def enable_hardware_timestamps(fileno: int, device: str) -> None:
    """Make a device timestamp all datagrams (``SIOCSHWTSTAMP``), unless it already does so.

    :raises OSError: ``EOPNOTSUPP``: the device cannot do that; ``EPERM``: this needs
        ``CAP_NET_ADMIN``.
    """
    config = _TimestampConfig()
    try:
        _call(fileno, _GET_TIMESTAMPS, device, config)
        if config.transmit == _TX_ON and config.filter != _FILTER_NONE:
            return  # by another program, such as ptp4l or chronyd
        config = _TimestampConfig(transmit=_TX_ON, filter=_FILTER_ALL)
        _call(fileno, _SET_TIMESTAMPS, device, config)
    except OSError as error:
        hints = {
            errno.EOPNOTSUPP: "the hardware of this device does not support timestamps",
            errno.ERANGE: "the hardware of this device cannot timestamp all datagrams",
            errno.EPERM: "this needs CAP_NET_ADMIN, or another program that enables them",
            errno.ENODEV: "there is no such device",
        }
        hint = hints.get(error.errno or 0)
        if hint is None:
            raise
        text = f"{os.strerror(error.errno or 0)}: {device}: {hint}"
        raise OSError(error.errno, text) from None


def _call(fileno: int, request: int, device: str, argument: ctypes.Structure) -> None:
    """Call ``ioctl(2)`` with a device's name and the address of a structure."""
    name = os.fsencode(device)
    # struct ifreq: a name of 16 bytes, and a union that is longer than a pointer.
    ifreq = struct.pack("16sP16x", name, ctypes.addressof(argument))
    fcntl.ioctl(fileno, request, ifreq)
