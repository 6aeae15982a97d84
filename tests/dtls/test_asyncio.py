"""Endpoints of asyncio with sessions."""

import asyncio
import socket as std
from functools import partial

import pytest

import tomada.asyncio
from certificates import certificates
from dtls_pairs import psk_client, psk_server, server_of, trusting
from dtls_relay import OneAddress
from tomada import Server, dtls
from tomada.testing import impaired

LOCAL = ("127.0.0.1", 0)


def run(main):
    return tomada.asyncio.run(asyncio.wait_for(main, 60))


class Echo(asyncio.DatagramProtocol):
    """Answers in capitals, and records what happens."""

    def __init__(self):
        self.happened = []
        self._wanted = None

    def note(self, *what):
        self.happened.append(what)
        if self._wanted is not None and what[0] == self._wanted[0]:
            self._wanted[1].set()

    async def until(self, what):
        """Wait until something of a kind has happened."""
        event = asyncio.Event()
        self._wanted = what, event
        if not any(each[0] == what for each in self.happened):
            await event.wait()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.note("received", data)
        self.transport.sendto(data.upper(), addr)

    def session_established(self, address, session):
        self.note("established", session.psk_identity)
        self.address = address

    def session_lost(self, _address, exception):
        self.note("lost", type(exception))


async def listen(context, protocol=Echo):
    loop = asyncio.get_running_loop()
    return await loop.create_datagram_endpoint(protocol, LOCAL, dtls=context)


def address_of(transport):
    return transport.get_extra_info("sockname")


def test_open_endpoint_asks_a_protocol():
    async def main():
        transport, echo = await listen(psk_server())
        to = address_of(transport)
        async with tomada.asyncio.open_endpoint(remote_addr=to, dtls=psk_client()) as endpoint:
            endpoint.send(b"hello")
            data, _ = await endpoint.recv()
            assert data == b"HELLO"
            session = transport.get_extra_info("dtls")(echo.address)
            assert session.psk_identity == "tester"
        await echo.until("lost")
        transport.close()
        assert echo.happened == [
            ("established", "tester"),
            ("received", b"hello"),
            ("lost", dtls.DTLSZeroReturnError),
        ]

    run(main())


def test_open_endpoint_serves_many_peers():
    async def main():
        async with tomada.asyncio.open_endpoint(LOCAL, dtls=psk_server()) as server:
            to = server.get_extra_info("sockname")

            async def serve():
                async for data, address in server:
                    server.send(data.upper(), address)

            async def ask(number):
                async with tomada.asyncio.open_endpoint(
                    remote_addr=to, dtls=psk_client()
                ) as endpoint:
                    for turn in range(3):
                        text = b"peer %d turn %d" % (number, turn)
                        endpoint.send(text)
                        assert (await endpoint.recv())[0] == text.upper()

            serving = asyncio.ensure_future(serve())
            await asyncio.gather(*(ask(number) for number in range(10)))
            serving.cancel()

    run(main())


def test_create_datagram_endpoint_verifies_the_server():
    files = certificates()

    async def main():
        transport, _ = await listen(server_of(files.ecdsa))
        to = address_of(transport)
        async with tomada.asyncio.open_endpoint(
            remote_addr=to, dtls=trusting(files.ca)
        ) as endpoint:
            endpoint.send(b"hello")
            assert (await endpoint.recv())[0] == b"HELLO"
        with pytest.raises(dtls.DTLSCertVerificationError, match="ostname mismatch"):
            await tomada.asyncio.open_endpoint(
                remote_addr=to, dtls=trusting(files.ca), server_hostname="other.example"
            )
        transport.close()

    run(main())


def test_create_datagram_endpoint_retransmits():
    async def main():
        loop = asyncio.get_running_loop()
        lost, closed = loop.create_future(), loop.create_future()

        class Swallow(asyncio.DatagramProtocol):
            def datagram_received(self, data, _addr):
                if not lost.done():
                    lost.set_result(data)

            def connection_lost(self, _error):
                loop.call_soon(closed.set_result, None)

        silent, _ = await loop.create_datagram_endpoint(Swallow, LOCAL)
        to = address_of(silent)
        asking = asyncio.ensure_future(
            loop.create_datagram_endpoint(Echo, remote_addr=to, dtls=psk_client())
        )
        await lost  # the first message
        silent.abort()
        await closed
        transport, echo = await loop.create_datagram_endpoint(Echo, to, dtls=psk_server())
        near, _ = await asking
        near.sendto(b"after all")
        await echo.until("received")
        near.close()
        transport.close()

    run(main())


def test_cancelling_a_handshake_closes_its_socket():
    async def main():
        loop = asyncio.get_running_loop()
        silent, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, LOCAL)
        asking = asyncio.ensure_future(
            loop.create_datagram_endpoint(Echo, remote_addr=address_of(silent), dtls=psk_client())
        )
        for _ in range(5):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        silent.close()

    run(main())


def test_create_datagram_endpoint_checks_the_context():
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(ValueError, match="PROTOCOL_DTLS_SERVER"):
            await loop.create_datagram_endpoint(Echo, LOCAL, dtls=psk_client())
        with pytest.raises(ValueError, match="PROTOCOL_DTLS_CLIENT"):
            await loop.create_datagram_endpoint(
                Echo, remote_addr=("127.0.0.1", 9), dtls=psk_server()
            )

    run(main())


def test_endpoint_ends_with_the_session():
    async def main():
        server = Server(LOCAL, lambda data, _: data.upper(), dtls=psk_server())
        server.start()
        endpoint = await tomada.asyncio.open_endpoint(remote_addr=server.address, dtls=psk_client())
        endpoint.send(b"hello")
        assert (await endpoint.recv())[0] == b"HELLO"
        await asyncio.to_thread(server.stop)
        # Its own answer to the end may have been refused.
        with pytest.raises((dtls.DTLSZeroReturnError, ConnectionRefusedError)):
            await endpoint.recv()
        await endpoint.aclose()

    run(main())


@pytest.mark.parametrize("has_match", [False, True])
def test_requests_of_an_endpoint_are_encrypted(has_match):
    match = (lambda request, reply: request.upper() == reply) if has_match else None

    async def main(server):
        async with tomada.asyncio.open_endpoint(
            remote_addr=server.address, dtls=psk_client()
        ) as endpoint:
            for number in range(5):
                request = b"request %d" % number
                reply = await endpoint.request(request, timeout=30, match=match)
                assert reply == request.upper()

    with Server(LOCAL, lambda data, _: data.upper(), dtls=psk_server()) as server:
        run(main(server))
        assert server.dtls_stats()["established"] == (1 if has_match else 2)
        assert server.dtls_stats()["invalid"] == 0


def test_endpoint_of_a_server_retransmits_its_part_of_a_handshake():
    server_hello = 2

    async def main():
        loop, hellos, is_repeated = asyncio.get_running_loop(), [], asyncio.Event()

        def script(arrival):
            if arrival.direction == "to_server":
                # Later on, the server would only answer the client again.
                return "drop" if hellos else "pass"
            if arrival.data[13] != server_hello:
                return "pass"
            hellos.append(arrival)
            if len(hellos) == 2:
                loop.call_soon_threadsafe(is_repeated.set)
            return "drop"

        async with (
            tomada.asyncio.open_endpoint(LOCAL, dtls=psk_server()) as endpoint,
            impaired(endpoint.get_extra_info("sockname"), script=script) as link,
        ):
            receiving = asyncio.ensure_future(endpoint.recv())
            asking = asyncio.ensure_future(open_client(link.address))
            await is_repeated.wait()
            for task in (receiving, asking):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    async def open_client(address):
        return await tomada.asyncio.open_endpoint(remote_addr=address, dtls=psk_client())

    run(main())


def test_endpoint_receives_data_that_came_with_the_end_of_the_handshake():
    application_data, new_session_ticket = 23, 4

    class Greeter(Echo):
        def session_established(self, address, session):  # noqa: ARG002 - of a protocol
            self.transport.sendto(b"greeting", address)

    async def main():
        loop = asyncio.get_running_loop()
        transport, _ = await listen(psk_server(), Greeter)
        server = address_of(transport)
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as relay:
            relay.bind(LOCAL)
            relay.setblocking(False)
            opening = asyncio.ensure_future(open_client(relay.getsockname()))
            held = []
            while not held or held[-1][0] != application_data:
                data, sender = await loop.sock_recvfrom(relay, 4096)
                if sender != server:
                    client = sender
                    relay.sendto(data, server)
                elif held or data[13] == new_session_ticket:
                    held.append(data)
                else:
                    relay.sendto(data, client)
            for data in held:  # the server's last flight, and the greeting
                relay.sendto(data, client)
            async with await opening as endpoint:
                assert await endpoint.recv() == (b"greeting", relay.getsockname())
        transport.close()

    async def open_client(address):
        return await tomada.asyncio.open_endpoint(remote_addr=address, dtls=psk_client())

    run(main())


def test_protocol_gets_datagrams_between_the_begin_and_the_end_of_their_session():
    async def main():
        loop = asyncio.get_running_loop()
        transport, echo = await listen(psk_server())
        with OneAddress(address_of(transport)) as relay:
            near = await loop.run_in_executor(None, relay.connect, "tester")
            near.send(b"last words")
            near.close()
            relay.pass_on()  # both arrive in one turn of the loop
            await echo.until("lost")
        transport.close()
        assert [what for what, *_ in echo.happened] == ["established", "received", "lost"]

    run(main())


def test_protocol_does_not_take_data_for_that_of_a_later_session():
    class Waiting(Echo):
        def __init__(self):
            super().__init__()
            self.mine = asyncio.Event()

        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if data == b"mine":
                self.mine.set()

    async def main():
        loop = asyncio.get_running_loop()
        transport, echo = await listen(psk_server(), Waiting)
        with OneAddress(address_of(transport)) as relay:
            first = await loop.run_in_executor(None, relay.connect, "tester")
            second = relay.client("other")
            hold = partial(relay.shake_hands, second, holds_last=True)
            last = await loop.run_in_executor(None, hold)
            first.send(b"secret of the first")
            relay.pass_on()
            relay.pass_on(*last)  # both arrive in one turn of the loop
            await loop.run_in_executor(None, relay.shake_hands, second)
            second.send(b"mine")
            relay.pass_on()
            await echo.mine.wait()
        transport.close()
        # The datagram is dropped if it was not delivered before its session was replaced.
        secret = ("received", b"secret of the first")
        happened = [what for what in echo.happened if what != secret]
        assert secret not in echo.happened[2:]
        assert happened == [
            ("established", "tester"),
            ("lost", dtls.DTLSZeroReturnError),
            ("established", "other"),
            ("received", b"mine"),
        ]

    run(main())


def test_client_gets_all_datagrams_before_the_end_of_its_session():
    class Pausing(Echo):
        def __init__(self):
            super().__init__()
            self.closed = asyncio.Event()

        def datagram_received(self, data, _addr):
            self.note("received", data)
            # The others were received as well, and wait.
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

        def connection_lost(self, _error):
            self.closed.set()

    async def main():
        loop = asyncio.get_running_loop()
        server = await tomada.asyncio.open_endpoint(LOCAL, dtls=psk_server())
        hearing = asyncio.ensure_future(server.recv())
        near, client = await loop.create_datagram_endpoint(
            Pausing, remote_addr=server.get_extra_info("sockname"), dtls=psk_client()
        )
        near.sendto(b"hello")
        _, address = await hearing
        sent = [b"%d" % number for number in range(20)]
        server.send_many(sent, address)
        server.abort()  # all arrive in one turn of the loop, with the end
        await client.closed.wait()
        assert client.happened == [
            ("established", "tester"),
            *(("received", data) for data in sent),
            ("lost", dtls.DTLSZeroReturnError),
        ]

    run(main())
