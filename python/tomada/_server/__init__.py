"""The inside of a server: its lifecycle, its sockets, its threads or processes."""
