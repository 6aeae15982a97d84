"""Code that all clients share: a request's schedule, the ports, and many requests in flight."""
