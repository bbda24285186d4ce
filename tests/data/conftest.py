import http.server
import socket
import threading

import numpy as np
import pytest
import torch

from helpers.data.samples import write_idx
from helpers.runtime import Run, say_once


class FileServer:
    """A local web server with the faults of real ones.

    files: {path without the slash: bytes}; seen: (path, Range header or None) of every request.
    cuts: how many bytes of the body the next answers send before the connection breaks; an answer
    that finds the list empty is whole.  ranges: whether Range is honoured.  stalls: instead of
    breaking, a cut answer keeps the connection open and silent.
    """

    def __init__(self, files):
        self.files, self.seen, self.cuts, self.ranges, self.stalls = dict(files), [], [], True, False
        self.over = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer(self, request):
        name, wanted = request.path.lstrip("/"), request.headers.get("Range")
        self.seen.append((name, wanted))
        if name not in self.files:
            return request.send_error(404)
        body, start = self.files[name], 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return request.send_error(416)
        request.send_response(206 if wanted and self.ranges else 200)
        if wanted and self.ranges:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        if not self.cuts:
            return request.wfile.write(body[start:])
        request.wfile.write(body[start : start + self.cuts.pop(0)])
        request.wfile.flush()
        return self.over.wait(10) if self.stalls else None

    def ranges_seen(self):
        return [wanted for _, wanted in self.seen]

    def close(self):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(autouse=True)
def nothing_said_yet():
    """What one test was told is told to the next one too."""
    say_once.cache_clear()


@pytest.fixture
def serve(monkeypatch):
    """``serve({name: bytes})`` starts a FileServer; all of them stop after the test."""
    monkeypatch.setenv("no_proxy", "*")  # a proxy of the machine must not come between
    servers = []

    def start(files):
        servers.append(FileServer(files))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def dead_url(monkeypatch):
    """The address of a port on which nobody listens."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


@pytest.fixture
def make_run(tmp_path):
    """``make_run()`` is a Run in the temporary folder, as ``runtime.start`` would make it."""

    def make(profile="quick", data_dir=None):
        data_dir = data_dir or tmp_path / "data"
        return Run("test", profile, torch.device("cpu"), data_dir, tmp_path / "logs")

    return make


TRAIN_EACH, TEST_EACH = 60, 20  # images of each of the ten classes in the numbered set


@pytest.fixture(scope="session")
def numbered(tmp_path_factory):
    """Four idx files in which every image is different: its first three pixels are its place and its file.

    So a test can tell which images went where (in real sets some images are there twice).
    """
    folder = tmp_path_factory.mktemp("numbered")
    for stem, each, mark in (("train", TRAIN_EACH, 0), ("t10k", TEST_EACH, 1)):
        count = each * 10
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = np.arange(count) // 256, np.arange(count) % 256, mark
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return folder
