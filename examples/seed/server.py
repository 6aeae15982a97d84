"""A server that answers every datagram with the same text in capital letters."""

from tomada import socket

HOST = "127.0.0.1"  # this computer
PORT = 1234  # any number from 1024 to 65535 that no other program uses
LARGEST = 65_535  # bytes; no datagram is longer

# AF_INET: Internet addresses, a host and a port. SOCK_DGRAM: datagrams, which UDP carries.
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:  # closed at the end
    server.bind((HOST, PORT))
    print(f"Waiting on {HOST}, port {PORT}. Ctrl-C ends this program.")
    try:
        while True:
            data, client = server.recvfrom(LARGEST)
            if not data:
                break  # an empty datagram also ends this program
            text = data.decode(errors="replace")
            print(f"{client} sent {text!r}")
            try:
                server.sendto(text.upper().encode(), client)
            except OSError as error:  # anyone can send from an address that none can reply to
                print(f"no answer to {client}: {error}")
    except KeyboardInterrupt:
        print("Interrupted.")
