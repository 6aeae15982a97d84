"""A server's counters for Prometheus: the extra ``tomada[metrics]``."""

from tomada._server.collector import ServerCollector

__all__ = ["ServerCollector"]

ServerCollector.__module__ = __name__
