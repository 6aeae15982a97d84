"""Network namespaces that act as machines, to test load balancers.

Each machine is a network namespace: a client at 10.78.1.2, a balancer at 10.78.1.1 and 10.78.2.1,
and a server at 10.78.2.2, whose network the client cannot reach.
"""

import contextlib
import signal
import subprocess
from dataclasses import dataclass

import tomada
import tools
from support import DEADLINE

CLIENT, FRONT, BACK, SERVER = "10.78.1.2", "10.78.1.1", "10.78.2.1", "10.78.2.2"
PORT = 5300


@dataclass
class Machines:
    client: object
    balancer: object
    server: object
    stack: contextlib.ExitStack

    def program(self, *command):
        """Run a program on the balancer until the test ends."""
        path = tools.find(command[0])
        process = self.balancer.run(
            lambda: subprocess.Popen(
                [path, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        self.stack.callback(process.wait, DEADLINE)
        self.stack.callback(process.send_signal, signal.SIGTERM)
        return process

    def serve(self, handler, port=PORT, **options):
        """Serve on the server's machine until the test ends."""
        serving = tomada.Server((SERVER, port), handler, **options)
        self.server.run(serving.start)
        self.stack.callback(serving.stop)
        return serving
