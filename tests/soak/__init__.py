"""A soak test: all kinds of traffic at once, for hours, with every datagram accounted for."""
