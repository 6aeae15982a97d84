"""A soak: all kinds of traffic at once, for long, with every datagram accounted for."""
