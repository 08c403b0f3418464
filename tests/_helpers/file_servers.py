"""Servers on this machine from which tests read files: one that speaks S3, and web servers, some of them broken."""

from __future__ import annotations

import http.server
import logging
import threading
from contextlib import contextmanager
from functools import partial


@contextmanager
def s3_server():
    """The URL of a server that speaks S3."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


class Web(http.server.SimpleHTTPRequestHandler):
    """Files and lists of a folder; `misbehave` by path returns True if it has answered in another way."""

    misbehave = staticmethod(lambda handler: False)
    requests: list[str]

    def do_GET(self):
        self.requests.append(self.path)
        if not self.misbehave(self):
            super().do_GET()

    def log_message(self, *args):
        return


@contextmanager
def web_server(folder, misbehave=lambda handler: False):
    """The URL of a web server, and the paths that were requested."""
    handler = type("Handler", (Web,), {"misbehave": staticmethod(misbehave), "requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.requests
        finally:
            server.shutdown()


def reset(handler):
    """Close a connection without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(2)
    return True
