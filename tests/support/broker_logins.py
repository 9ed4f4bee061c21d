"""The services' logins of `deploy/compose.yaml`, on a private broker."""

from __future__ import annotations

import json
from typing import Any

from tests.support.compose import OURS, fill_in, read_compose
from tests.support.servers.process import HOST
from tests.support.servers.rabbitmq import RabbitMQ

PASSWORDS = {name: f"password0of0the0{name}" for name in OURS}


def definitions(vhost: str = "/") -> dict[str, Any]:
    """What the broker of the stack reads at its start, for this virtual host."""
    values = {f"RABBITMQ_{name.upper()}_PASSWORD": word for name, word in PASSWORDS.items()}
    content = fill_in(read_compose()["configs"]["rabbitmq-logins"]["content"], values)
    read: dict[str, Any] = json.loads(content)
    for entry in (*read["permissions"], *read["topic_permissions"]):
        entry["vhost"] = vhost
    return {**read, "vhosts": [{"name": vhost}]}


def make_logins(node: RabbitMQ, vhost: str) -> dict[str, str]:
    """Let the services in; by service the address that it uses."""
    file = node.folder / f"logins-{vhost.replace('/', '-')}.json"
    file.write_text(json.dumps(definitions(vhost)))
    node.ctl("import_definitions", str(file))
    place = f"{HOST}:{node.port}/{vhost.replace('/', '%2F')}"
    return {name: f"amqp://{name}:{word}@{place}" for name, word in PASSWORDS.items()}
