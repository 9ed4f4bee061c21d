"""A private RabbitMQ node, from the system's own package."""

import json
import os
import secrets
import shutil
import signal
import uuid
from asyncio import timeout
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from subprocess import PIPE, STDOUT, run

import aio_pika
from aio_pika.exceptions import AMQPError
from yarl import URL

from shared.messaging.topology import MAX_MESSAGE_BYTES
from tests.support.servers.process import (
    HOST,
    Child,
    Server,
    ServerError,
    free_port,
    in_own_loop,
    listens,
    search_path,
)

# Not the wrappers on the PATH: Debian's change the user, and leave the node behind when ended.
FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/lib/rabbitmq/lib/*/sbin")
START_SECONDS = 120

MAKE_VHOST = """
rabbit_vhost:add(<<%(name)s>>, <<"tests">>),
rabbit_auth_backend_internal:set_permissions(
  <<"guest">>, <<%(name)s>>, <<".*">>, <<".*">>, <<".*">>, <<"tests">>)
"""
MAKE_USER = """
rabbit_auth_backend_internal:add_user(<<%(name)s>>, <<%(password)s>>, <<"tests">>),
rabbit_auth_backend_internal:set_permissions(
  <<%(name)s>>, <<%(vhost)s>>, <<".*">>, <<".*">>, <<".*">>, <<"tests">>)
"""
IMPORT = """
{ok, Definitions} = file:read_file(%s),
rabbit_definitions:import_raw(Definitions)
"""
DEPTHS = """
lists:flatten([
  io_lib:format("~s ~b ~b;", [element(4, Name), Ready, Unacked])
  || Queue <- rabbit_amqqueue:list(<<%s>>),
     [{_, Name}, {_, Ready}, {_, Unacked}] <-
       [catch rabbit_amqqueue:info(Queue, [name, messages_ready, messages_unacknowledged])]
])
"""


def find_programs() -> Path:
    """Return the folder of the node's own scripts."""
    for pattern in FOLDERS:
        for folder in sorted(Path("/").glob(pattern[1:])):
            if (folder / "rabbitmq-server").exists():
                return folder
    raise ServerError("No RabbitMQ here: apt-get install rabbitmq-server")


def find_erlang(name: str) -> str:
    """Return a program of Erlang's, such as its port mapper, which every node registers with."""
    if program := shutil.which(name, path=search_path()):
        return program
    raise ServerError(f"No {name} here: apt-get install erlang-base")


class RabbitMQ(Server):
    """One node with a port mapper of its own, reached by nobody else.

    Blocking; from a coroutine call its methods by `asyncio.to_thread`, so that clients in the same
    loop live on.
    """

    def __init__(self) -> None:
        self._programs = find_programs()
        self._epmd_program = find_erlang("epmd")
        self._erl_call_program = find_erlang("erl_call")
        super().__init__()
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self._epmd_port = free_port()
        self._name = f"test-{uuid.uuid4().hex[:12]}@localhost"
        self._env = self._environment()
        self._epmd: Child | None = None
        self._node: Child | None = None
        self._numbers = count(1)
        self._write_settings()

    # -- life

    def start(self) -> None:
        """Start the node, or wake it; what an earlier run confirmed is still there."""
        self._start_epmd()
        if self._node and self._node.alive:
            return self.resume()
        self._node = self._child(str(self._programs / "rabbitmq-server"))
        self._node.wait_until(self._is_ready, START_SECONDS)
        return None

    def kill(self) -> None:
        """End the node as a power cut would; see `settle` for what would not survive it."""
        self._end_node(signal.SIGKILL)

    def settle(self) -> None:
        """Make the queues declared so far survive a kill.

        The node writes the names of quorum queues down every half a second. A queue killed before
        that comes back with its messages but never answers again.
        """
        self.evaluate("[dets:sync(Table) || Table <- dets:all()]")

    def pause(self) -> None:
        """Make the node hang: connections stay open, nothing is answered."""
        node = self._running_node()
        node.send(signal.SIGSTOP)
        os.waitid(os.P_PID, node.pid, os.WSTOPPED)  # its last thread stands only after a moment

    def resume(self) -> None:
        self._running_node().send(signal.SIGCONT)

    def end_processes(self) -> None:
        self._end_node(signal.SIGTERM)
        if self._epmd:
            self._epmd.end(signal.SIGTERM)
            self._epmd = None

    # -- use

    def url(self, vhost: str = "/") -> str:
        """Return the address of a virtual host."""
        return f"amqp://guest:{self.password}@{HOST}:{self.port}/{vhost.replace('/', '%2F')}"

    def fresh_vhost(self) -> str:
        """Make a virtual host, and return its name."""
        name = f"test-{next(self._numbers)}"
        self.evaluate(MAKE_VHOST % {"name": json.dumps(name)})
        return name

    def fresh_url(self) -> str:
        """Make a virtual host, and return its address."""
        return self.url(self.fresh_vhost())

    def make_user(self, name: str, password: str, vhost: str) -> None:
        """Make a user who may do everything in a virtual host."""
        wanted = {"name": name, "password": password, "vhost": vhost}
        self.evaluate(MAKE_USER % {key: json.dumps(text) for key, text in wanted.items()})

    def import_definitions(self, file: Path) -> None:
        """Make the users, virtual hosts and permissions of a file."""
        self.evaluate(IMPORT % json.dumps(str(file)))

    def close_all_connections(self, reason: str = "the test asks for it") -> None:
        """Cut every client off; all may come back at once."""
        self.evaluate(f"rabbit_networking:close_all_connections({json.dumps(reason)})")

    def want_disk(self, space: str = "50MB") -> None:
        """Take no messages unless so much of the disk is free; 50 MB is what a node wants."""
        self.evaluate(f"rabbit_disk_monitor:set_disk_free_limit({json.dumps(space)})")

    def take_at_most(self, size: int = MAX_MESSAGE_BYTES) -> None:
        """Refuse larger messages on the channels that are opened from now on."""
        self.evaluate(f"application:set_env(rabbit, max_message_size, {size})")

    def depths(self, vhost: str) -> dict[str, tuple[int, int]]:
        """Return, for each queue, how many messages are ready and how many unacknowledged.

        A queue that goes away meanwhile is left out.
        """
        listed = self.evaluate(DEPTHS % json.dumps(vhost)).strip('"')
        lines = (line.split() for line in listed.split(";") if line)
        return {name: (int(ready), int(unacked)) for name, ready, unacked in lines}

    def evaluate(self, expression: str) -> str:
        """Have the node evaluate some Erlang; what it is, as a term.

        The same as `rabbitmqctl eval`, which takes half a second of a core to start.
        """
        command = [self._erl_call_program, "-sname", self._name, "-c", self._cookie, "-e"]
        done = run(
            command, env=self._env, input=f"{expression}.\n", stdout=PIPE, stderr=STDOUT,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        if not done.stdout.startswith("{ok, "):
            raise ServerError(f"{expression}: {done.stdout}")
        return done.stdout.removeprefix("{ok, ").rstrip().removesuffix("}")

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` against this node and return what it prints."""
        command = [str(self._programs / "rabbitmqctl"), "--quiet", "-n", self._name, *arguments]
        done = run(
            command, env=self._env, stdout=PIPE, stderr=STDOUT, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise ServerError(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}")
        return done.stdout

    def ctl_environment(self) -> dict[str, str]:
        """Return what a script needs that runs `$RABBITMQCTL` against this node."""
        program = f"{self._programs / 'rabbitmqctl'} --quiet -n {self._name}"
        return {**self._env, "RABBITMQCTL": program}

    # -- inside

    @property
    def _cookie(self) -> str:
        return (self.folder / ".erlang.cookie").read_text()

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": search_path(),
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the node: its pid is the node's
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
        }

    def _write_settings(self) -> None:
        definitions = self.folder / "definitions.json"
        definitions.write_text(json.dumps(_definitions(self.password)))
        (self.folder / "enabled_plugins").write_text("[].")
        (self.folder / "rabbitmq.conf").write_text(
            f"load_definitions = {definitions}\nmax_message_size = {MAX_MESSAGE_BYTES}\n"
        )

    def _child(self, *command: str, linger: int = 0) -> Child:
        return Child(command, folder=self.folder, env=self._env, linger=linger)

    def _start_epmd(self) -> None:
        # A node that finds none, at any time of its life, starts one that outlives it.
        if not self._epmd:
            command = (self._epmd_program, "-port", str(self._epmd_port), "-address", HOST)
            self._epmd = self._child(*command, linger=6)
            self._epmd.wait_until(lambda: listens(self._epmd_port), START_SECONDS)

    def _end_node(self, number: signal.Signals) -> None:
        if self._node:
            self._node.end(number)
            self._node = None

    def _running_node(self) -> Child:
        if not self._node:
            raise ServerError("the node is not running")
        return self._node

    def _is_ready(self) -> bool:
        return listens(self.port) and in_own_loop(_confirms(self.url()))


def _definitions(password: str) -> dict[str, object]:
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    return {
        "users": [{"name": "guest", "password": password, "tags": ["administrator"]}],
        "vhosts": [{"name": "/"}],
        "permissions": [{"vhost": "/", "user": "guest", **everything}],
    }


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[aio_pika.Connection]:
    """A connection that does not reconnect, and is closed even if it never came to be."""
    connection = aio_pika.Connection(URL(url))
    try:
        await connection.connect()
        yield connection
    finally:
        await connection.close()


async def _confirms(url: str) -> bool:
    try:
        async with timeout(10), connected(url) as connection:
            channel = await connection.channel()
            await channel.default_exchange.publish(
                aio_pika.Message(b""), "nowhere", mandatory=False
            )
    except (AMQPError, OSError, TimeoutError):
        return False
    return True
