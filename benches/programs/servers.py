"""Servers that call a handler for each datagram."""

from __future__ import annotations

import socketserver

from benches.programs.run import CHUNK, Run, Stopped


def standard(run: Run) -> None:
    """``socketserver.UDPServer``."""
    counter, echoed = run.counter, 0

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            nonlocal echoed
            data, sock = self.request
            sock.sendto(data, self.client_address)
            echoed += 1
            if not echoed % len(CHUNK):
                counter[0] = echoed

    with socketserver.UDPServer(("127.0.0.1", 0), Handler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = run.bind()
        run.interrupt_at_end()
        run.announce_socket(server.socket)
        try:
            server.serve_forever()
        except Stopped:
            counter[0] = echoed
