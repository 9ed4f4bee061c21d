"""The proxy of ``deploy/nginx.conf``, by the system's own package, with a certificate for now."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.servers.process import (
    HOST,
    Child,
    Server,
    ServerError,
    free_port,
    listens,
    search_path,
)

CONFIGURATION = Path(__file__).parents[3] / "deploy" / "nginx.conf"
START_SECONDS = 60


class Nginx(Server):
    """The deployment's proxy, but for its addresses and what ``changes`` replaces."""

    def __init__(self, gateway_port: int, changes: dict[str, str]) -> None:
        super().__init__()
        self.port = free_port()
        self._changes = {
            "listen 443 ssl;": f"listen {HOST}:{self.port} ssl;",
            "server gateway:8080;": f"server {HOST}:{gateway_port};",
            "/etc/nginx/tls/": f"{self.folder}/",
            "/var/cache/nginx/": f"{self.folder}/",
            "/var/log/nginx/": f"{self.folder}/",
            "worker_processes auto;": "worker_processes 1;",
            **changes,
        }
        self._server: Child | None = None

    def start(self) -> None:
        self._write_certificate()
        self._write_configuration()
        program = shutil.which("nginx", path=f"{search_path()}{os.pathsep}/usr/sbin")
        if program is None:
            raise ServerError("No nginx here: apt-get install nginx-light")
        more = f"daemon off; pid {self.folder}/nginx.pid; error_log stderr;"
        if os.geteuid() == 0:
            more += " user root;"
        command = [program, "-p", str(self.folder), "-c", str(self._configuration), "-g", more]
        env = {"PATH": search_path()}
        self._server = Child(command, folder=self.folder, env=env)
        self._server.wait_until(lambda: listens(self.port), START_SECONDS)

    def end_processes(self) -> None:
        if self._server:
            self._server.end(signal.SIGTERM)

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    @property
    def trust(self) -> ssl.SSLContext:
        """Trusts this server alone."""
        return ssl.create_default_context(cafile=str(self.folder / "fullchain.pem"))

    @property
    def _configuration(self) -> Path:
        return self.folder / "nginx.conf"

    def _write_configuration(self) -> None:
        text = CONFIGURATION.read_text()
        for before, after in self._changes.items():
            if before not in text:
                raise ServerError(f"{CONFIGURATION} no longer has {before!r}")
            text = text.replace(before, after)
        self._configuration.write_text(text)

    def _write_certificate(self) -> None:
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
        address = x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))])
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(address, critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        (self.folder / "fullchain.pem").write_bytes(certificate.public_bytes(pem))
        secret = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.folder / "privkey.pem").write_bytes(secret)
