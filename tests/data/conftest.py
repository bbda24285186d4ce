"""Fixtures of the data tests: runs, files in MNIST's format, and a web server on this machine."""

import contextlib
import gzip
import http.server
import struct
import threading

import numpy as np
import pytest

from helpers.runtime import Run, say_once
from tests.toy import CPU


@pytest.fixture(autouse=True)
def nothing_said_yet():
    """What one test was told once is told to the next one too."""
    say_once.cache_clear()


@pytest.fixture
def make_run(tmp_path):
    """``make_run(profile)``: a run on the CPU whose data folder is empty until the test fills it."""
    return lambda profile="quick": Run("01_test", profile, CPU, tmp_path / "data", tmp_path / "logs")


@pytest.fixture
def serve(monkeypatch):
    """``serve({name: bytes})`` gives the address of a server with these files and the list of names asked for."""
    monkeypatch.setenv("no_proxy", "*")
    with contextlib.ExitStack() as servers:

        def start(files: dict[str, bytes]) -> tuple[str, list[str]]:
            seen = []

            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self):
                    seen.append(self.path[1:])
                    self.send_response(200 if self.path[1:] in files else 404)
                    content = files.get(self.path[1:], b"")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            server = servers.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            servers.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            return f"http://127.0.0.1:{server.server_address[1]}/", seen

        yield start


@pytest.fixture
def numbered(tmp_path):
    """FashionMNIST/raw in the data folder: 60 training and 20 test images a class, all different.

    The first three pixels of an image are its place in its file and the file, so that tests can tell them apart.
    """
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, each, mark in (("train", 60, 0), ("t10k", 20, 1)):
        place = np.arange(10 * each)
        images = np.zeros((10 * each, 28, 28), dtype=np.uint8)
        images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = place // 256, place % 256, mark
        for name, array in (("images-idx3", images), ("labels-idx1", (place % 10).astype(np.uint8))):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (raw / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return raw
