"""Real stores on this machine, for tests and measurements: each is started in a second or two, and gone at the end."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["AZURITE_VERSION", "Server", "azurite", "free_port", "gcs", "moto", "nginx", "sftp"]

AZURITE_VERSION = "3.35.0"
AZURE_ACCOUNT = "devstoreaccount1"
# The key that every Azurite has, and its documentation prints.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
START_SECONDS = 60.0


class Server(NamedTuple):
    """A running store: where an object lies, and what opening it takes."""

    url: str
    """Of a folder or bucket that exists; a name is joined with a slash."""
    storage_options: dict[str, Any]
    port: int
    folder: Path | None = None
    """What it serves, where it serves a folder."""

    def through(self, port: int) -> Server:
        """The same store through a proxy at ``port``."""

        def moved(value: Any) -> Any:
            if isinstance(value, str):
                return value.replace(f"127.0.0.1:{self.port}", f"127.0.0.1:{port}")
            return {name: moved(inner) for name, inner in value.items()} if isinstance(value, dict) else value

        return self._replace(url=moved(self.url), storage_options=moved(self.storage_options))


def free_port() -> int:
    """A port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def needed(program: str, install: str) -> str:
    """The path of a program. Raises RuntimeError with what to install."""
    found = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        raise RuntimeError(f"{program} is not here; {install}")
    return found


@contextlib.contextmanager
def running(command: list[str], port: int, log: Path, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """``command`` as long as the block runs, which begins when ``port`` takes connections."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **(env or {})}
        )
        try:
            until = time.monotonic() + START_SECONDS
            while True:
                if process.poll() is not None or time.monotonic() > until:
                    said = log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{command[0]} did not start: {said}")
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                    break
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def moto(work: Path, bucket: str = "archives") -> Iterator[Server]:
    """moto's S3 server: ranges, multipart, conditional writes."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, work / "moto.log"):
        endpoint = f"http://127.0.0.1:{port}"
        options = {
            "key": "testing", "secret": "testing-secret",
            "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"},
        }  # fmt: skip
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")).close()
        yield Server(f"s3://{bucket}", options, port)


@contextlib.contextmanager
def azurite(work: Path, program: Path, container: str = "archives") -> Iterator[Server]:
    """Azurite, the Azure Blob Storage emulator; ``program`` is its ``azurite-blob``."""
    if not program.exists():
        raise RuntimeError(f"{program} is not here; run tools/servers/install")
    port = free_port()
    command = [
        needed("node", "install Node.js 18 or newer"), str(program), "--silent", "--skipApiVersionCheck",
        "--inMemoryPersistence", "--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", str(port),
    ]  # fmt: skip
    with running(command, port, work / "azurite.log"):
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{AZURE_ACCOUNT};"
        )
        options = {"account_name": AZURE_ACCOUNT, "connection_string": connection}
        import adlfs

        adlfs.AzureBlobFileSystem(**options, skip_instance_cache=True).mkdir(container)
        yield Server(f"az://{container}", options, port)


@contextlib.contextmanager
def gcs(work: Path, bucket: str = "archives") -> Iterator[Server]:
    """gcp-storage-emulator. It ignores preconditions and generations."""
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "--host=127.0.0.1",
               f"--port={port}", f"--default-bucket={bucket}"]  # fmt: skip
    with running(command, port, work / "gcs.log"):
        options = {"endpoint_url": f"http://127.0.0.1:{port}", "token": "anon", "project": "testing"}
        yield Server(f"gs://{bucket}", options, port)


@contextlib.contextmanager
def nginx(work: Path, *, ranges: bool = True) -> Iterator[Server]:
    """nginx over a folder, with ranges or (``max_ranges 0``) without."""
    port = free_port()
    folder = work / "www"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        (work / name).mkdir(exist_ok=True)
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    (work / "nginx.conf").write_text(
        f"""{user} daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path {work}/body; proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    server {{ listen 127.0.0.1:{port}; root {folder}; {"" if ranges else "max_ranges 0;"} }}
}}
"""
    )
    program = needed("nginx", "install it (on Debian: apt-get install nginx-light)")
    with running([program, "-p", str(work), "-c", str(work / "nginx.conf")], port, work / "nginx.log"):
        yield Server(f"http://127.0.0.1:{port}", {}, port, folder)


@contextlib.contextmanager
def sftp(work: Path) -> Iterator[Server]:
    """OpenSSH's server with a key of its own, for this user and for SFTP only."""
    port = free_port()
    folder = work / "files"
    folder.mkdir(parents=True, exist_ok=True)
    keygen = needed("ssh-keygen", "install it (on Debian: apt-get install openssh-client)")
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(work / name)], check=True)
    (work / "authorized").write_text((work / "user.pub").read_text())
    (work / "sshd.conf").write_text(
        f"""Port {port}
ListenAddress 127.0.0.1
HostKey {work}/host
AuthorizedKeysFile {work}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
Subsystem sftp internal-sftp
ForceCommand internal-sftp
"""
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # sshd wants it to drop its privileges
    program = needed("sshd", "install it (on Debian: apt-get install openssh-server)")
    with running([program, "-D", "-e", "-f", str(work / "sshd.conf")], port, work / "sshd.log"):
        user = getpass.getuser()
        options = {"port": port, "username": user, "key_filename": str(work / "user"), "look_for_keys": False,
                   "allow_agent": False}  # fmt: skip
        yield Server(f"sftp://127.0.0.1{folder}", options, port, folder)
