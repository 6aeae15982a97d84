"""Sinks: handlers that publish datagrams to a message broker."""
