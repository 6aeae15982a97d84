"""Sinks: handlers that publish datagrams to a distributed engine."""
