"""Fixtures of the data tests: runs, files in MNIST's format, and a web server on this machine."""

import gzip
import http.server
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.runtime import Run, say_once


@pytest.fixture(autouse=True)
def nothing_said_yet():
    """What one test was told once is told to the next one too."""
    say_once.cache_clear()


@pytest.fixture
def make_run(tmp_path):
    """``make_run(profile)``: a run on the CPU whose data folder is empty until the test fills it."""

    def make(profile: str = "quick") -> Run:
        return Run("01_test", profile, torch.device("cpu"), tmp_path / "data", tmp_path / "logs")

    return make


@pytest.fixture
def serve(monkeypatch):
    """``serve({name: bytes})`` gives the address of a server with these files and the list of names asked for."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(files: dict[str, bytes], length: bool = True) -> tuple[str, list[str]]:
        seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.lstrip("/")
                seen.append(name)
                if name not in files:
                    return self.send_error(404)
                self.send_response(200)
                if length:
                    self.send_header("Content-Length", str(len(files[name])))
                self.end_headers()
                return self.wfile.write(files[name])

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def dead_url(monkeypatch):
    """The address of a port on which nobody listens."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


def write_idx(path: Path, array: np.ndarray) -> None:
    """A uint8 array as an idx file, packed if the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


@pytest.fixture
def numbered(tmp_path):
    """FashionMNIST/raw in the data folder: 60 training and 20 test images a class, all different.

    The first three pixels of an image are its place in its file and the file, so that tests can tell them apart.
    """
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    for part, each, mark in (("train", 60, 0), ("t10k", 20, 1)):
        place = np.arange(10 * each)
        images = np.zeros((10 * each, 28, 28), dtype=np.uint8)
        images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = place // 256, place % 256, mark
        write_idx(raw / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte.gz", place % 10)
    return raw
