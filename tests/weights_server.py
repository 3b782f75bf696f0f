"""A local web server for tests of downloads, which can fail in different ways; temporary rows of published weights."""

import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fcvit_mm.checkpoints import published


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get('Range')
        server.asked.append((self.path, wanted))
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        data = server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start = int(wanted[len('bytes=') :].rstrip('-')) if wanted and server.ranges else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        if server.length:
            self.send_header('Content-Length', str(len(data) - start))
        self.send_header('ETag', server.etag)
        self.end_headers()
        part = data[start:]
        for i in range(0, len(part[: server.cuts[0]] if server.cuts else part), 1000):
            self.wfile.write(part[i : i + 1000])
            self.wfile.flush()
            time.sleep(server.pause)
        if server.cuts:
            server.cuts.pop(0)
        self.close_connection = True

    def handle(self):
        with suppress(OSError):  # the client has disconnected
            super().handle()

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    """Web server whose responses are set by attributes.

    Attributes:
        files (dict[str, bytes]): Contents by path.
        asked (list[tuple]): Path and Range header of each request.
        cuts (list[int]): Numbers of bytes, multiples of 1000, after which the next responses end.
        statuses (list[int]): Status codes of errors for the next responses.
        ranges (bool): Whether range requests are supported.
        length (bool): Whether the responses have a Content-Length.
        etag (str): ETag of the content.
        pause (float): Seconds after each 1000 bytes.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.asked, self.cuts, self.statuses = {}, [], [], []
        self.ranges, self.length, self.etag, self.pause = True, True, '"1"', 0.0

    @property
    def address(self):
        return f'http://127.0.0.1:{self.server_port}'


@contextmanager
def running():
    """Run a server."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def temporary_published():
    """Unregister the published weights that are registered in this context."""
    rows = dict(published._published)
    try:
        yield
    finally:
        published._published.clear()
        published._published.update(rows)
