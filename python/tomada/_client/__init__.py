"""What clients share: the schedule of a request, its ports, and many requests in flight."""
