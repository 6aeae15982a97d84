"""The internals of a server: its lifecycle, sockets, threads and processes."""
