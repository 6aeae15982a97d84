"""``tomada serve --otel``: sends a server's metrics to an OpenTelemetry collector."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tomada._cli.common import CommandError

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider

    from tomada import Server


class Exporter:
    """Sends metrics from the process that started the workers, using OTLP over HTTP.

    :raises CommandError: OpenTelemetry is not installed.
    """

    def __init__(self) -> None:
        try:
            import opentelemetry.exporter.otlp.proto.http.metric_exporter
            import opentelemetry.sdk.metrics.export  # noqa: F401 - start() needs it
        except ImportError:
            raise CommandError("otel needs OpenTelemetry: install tomada[otel]") from None
        self._provider: MeterProvider | None = None

    def start(self, server: Server) -> None:
        """Begin to send. This starts a thread, so call it after the workers are forked."""
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        from tomada.telemetry import instrument

        os.environ.setdefault("OTEL_SERVICE_NAME", "tomada")
        self._provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
        instrument(server, self._provider)

    def end(self) -> None:
        """Send the last values, and stop."""
        if self._provider is not None:
            self._provider.shutdown()
