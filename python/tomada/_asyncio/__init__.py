"""Datagram transports and endpoints on an event loop."""
