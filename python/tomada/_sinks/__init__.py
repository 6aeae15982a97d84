"""Sinks: handlers that hand datagrams on to a distributed engine."""
