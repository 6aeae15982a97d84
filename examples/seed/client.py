"""A client that sends two datagrams to the server and prints the answers."""

from tomada import socket

SERVER = ("127.0.0.1", 1234)  # the host and the port where server.py waits
LARGEST = 65_535  # bytes; no datagram is longer

# AF_INET: Internet addresses, a host and a port. SOCK_DGRAM: datagrams, which UDP carries.
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(2)  # seconds; UDP does not guarantee delivery, so do not wait for ever

    # Give each datagram its destination, and get the sender with each reply.
    client.sendto("olá, mundo".encode(), SERVER)
    data, sender = client.recvfrom(LARGEST)
    print(f"{sender} answered {data.decode()!r}")

    # A connected socket has one peer, and only receives from that peer.
    client.connect(SERVER)
    client.send(b"hello again")
    data = client.recv(LARGEST)
    print(f"The server answered {data.decode()!r}")
# The with statement has closed the socket.
