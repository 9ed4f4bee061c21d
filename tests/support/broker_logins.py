"""Logins on a private broker: the services', and those of other programs."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from tests.support.compose import DEPLOY, OURS
from tests.support.servers.process import HOST
from tests.support.servers.rabbitmq import RabbitMQ

PASSWORDS = {name: f"password0of0the0{name}" for name in OURS}


def definitions(vhost: str = "/") -> dict[str, Any]:
    """The definitions that the stack's broker loads at start, for this virtual host."""
    content = (DEPLOY / "rabbitmq-logins.json").read_text()
    for name, password in PASSWORDS.items():
        content = content.replace(f"${{broker-password-{name}}}", password)
    read: dict[str, Any] = json.loads(content)
    for entry in (*read["permissions"], *read["topic_permissions"]):
        entry["vhost"] = vhost
    return {**read, "vhosts": [{"name": vhost}]}


def make_logins(node: RabbitMQ, vhost: str) -> dict[str, str]:
    """Create the services' logins; the AMQP URL of each service."""
    file = node.folder / f"logins-{vhost.replace('/', '-')}.json"
    file.write_text(json.dumps(definitions(vhost)))
    node.import_definitions(file)
    address = f"{HOST}:{node.port}/{vhost.replace('/', '%2F')}"
    return {name: f"amqp://{name}:{password}@{address}" for name, password in PASSWORDS.items()}


def make_user(rabbitmq: RabbitMQ, kind: str, name: str, vhost: str) -> str:
    """Run the deployment's script; the address that the new login uses."""
    subprocess.run(
        [DEPLOY / "rabbitmq-users.sh", kind, name], input="secret\n", text=True, check=True,
        env=rabbitmq.ctl_environment() | {"VHOST": vhost, "PATH": os.environ["PATH"]},
    )  # fmt: skip
    return f"amqp://{name}:secret@{HOST}:{rabbitmq.port}/{vhost}"
