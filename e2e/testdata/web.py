"""A server for the tests of ingress: python3 web.py PORT."""
import base64, hashlib, http.server, json, os, struct, sys, threading, urllib.parse

PAGE = b"""<!doctype html><title>guest</title><body>waiting<script>
const ws = new WebSocket("ws://" + location.host + "/ws");
ws.onopen = () => ws.send("hello from a browser");
ws.onmessage = m => { document.body.textContent = "echo: " + m.data; ws.send("seen"); };
</script><script src="/when-seen"></script></body>"""
seen = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body, kind="text/plain", status=200, headers=()):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        match url.path:
            case "/":
                self.answer(PAGE, "text/html")
            case "/when-seen":
                self.answer(b"" if seen.wait(30) else b"throw 'not seen'", "text/javascript")
            case "/echo":
                body = {"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}}
                self.answer(json.dumps(body).encode(), "application/json",
                            headers=[("Clear-Site-Data", '"*"'), ("Set-Cookie", "mine=1")])
            case "/big":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                chunk = b"x" * 65536
                for _ in range(int(query["n"]) // len(chunk)):
                    self.wfile.write(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")
            case "/events":
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(b"data: one\n\n")
                os.system("until [ -e /tmp/go-on ]; do sleep 0.05; done")
                self.wfile.write(b"data: two\n\n")
                self.close_connection = True
            case "/ws":
                self.websocket()
            case _:
                self.answer(b"nothing at " + self.path.encode(), status=404)

    do_HEAD = do_GET

    def do_POST(self):
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            part = self.rfile.read(min(left, 1 << 20))
            left -= len(part)
            digest.update(part)
        self.answer(digest.hexdigest().encode())

    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while True:
            head = self.rfile.read(2)
            if len(head) < 2 or head[0] & 15 == 8:
                return
            size = head[1] & 127
            if size == 126:
                size, = struct.unpack(">H", self.rfile.read(2))
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(size)))
            if data == b"seen":
                seen.set()
                continue
            head = bytes([0x80 | head[0] & 15]) + (bytes([size]) if size < 126 else b"\x7e" + struct.pack(">H", size))
            self.wfile.write(head + data)


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
