"""The internals of :mod:`tomada.testing`."""
