"""Every command in the documents is one that exists: its flags, targets, files and addresses.

Each program has a check below. A command of another program fails: it needs one, too.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from everydream.cli import app
from services.gateway.jobs.request_parser import parse_request
from tests.support.compose import read_compose
from tests.support.documents import ROOT, SHELL, Block, Command, blocks, commands_of, spans

BLOCKS = blocks()
SHELLS = [block for block in BLOCKS if block.language == SHELL]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
OPENAPI: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text())
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
PLACEHOLDER, A_JOB = re.compile(r"\bID[A-Z-]*"), "5366c89f-e4e9-4282-98a9-d88bd9ab1786"
GATEWAYS = {"127.0.0.1:8080", "localhost:8080", "api.runpod.ai"}


class Strict(argparse.ArgumentParser):
    """Takes nothing but what it knows, and raises."""

    def error(self, message: str) -> Any:
        raise AssertionError(message)


def check_everydream(words: list[str]) -> None:
    """Its command takes these words; nothing is run."""
    app.parse_args(words[1:], exit_on_error=False, print_error=False)


def check_make(words: list[str]) -> None:
    for word in words[1:]:
        variable, found, _ = word.partition("=")
        known = rf"^{re.escape(variable)} \?=" if found else rf"^{re.escape(word)}:"
        assert re.search(known, MAKEFILE, re.MULTILINE), f"the Makefile has no {variable}"


def check_docker(words: list[str]) -> None:
    """Files and containers are those of deploy/."""
    if words[1] == "volume":
        return
    assert words[1] == "compose"
    parser = Strict()
    parser.add_argument("-f", dest="files", action="append", required=True)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Strict)
    up = verbs.add_parser("up")
    for flag in ("--build", "--detach", "--wait", "--force-recreate"):
        up.add_argument(flag, action="store_true")
    up.add_argument("--scale", action="append", default=[])
    verbs.add_parser("stop")
    verbs.add_parser("down").add_argument("--volumes", action="store_true")
    logs = verbs.add_parser("logs")
    logs.add_argument("--follow", action="store_true")
    logs.add_argument("services", nargs="+")
    up.add_argument("services", nargs="*")
    run = verbs.add_parser("run")
    run.add_argument("--rm", action="store_true")
    run.add_argument("--no-deps", action="store_true")
    run.add_argument("--volume", action="append")
    inside = verbs.add_parser("exec")
    inside.add_argument("-T", action="store_true")
    for each in (run, inside):
        each.add_argument("services", nargs=1)
        each.add_argument("rest", nargs=argparse.REMAINDER)
    asked = parser.parse_args(words[2:])
    scaled = [each.partition("=")[0] for each in getattr(asked, "scale", [])]
    for name in (*getattr(asked, "services", []), *scaled):
        assert name in read_compose()["services"], name
    for file in asked.files:
        assert (ROOT / file).exists() or file.endswith(".override.yaml"), file
    if asked.verb in {"exec", "run"}:
        check(asked.rest)


def check_kubectl(words: list[str]) -> None:
    """Its folders and objects are those of deploy/kubernetes."""
    if words[1:] in (["drain"], ["apply", "-k"], ["kustomize"]):
        return  # prose
    parser = Strict()
    parser.add_argument("-n", dest="namespace")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Strict)
    verbs.add_parser("apply").add_argument("-k", dest="folder")
    verbs.add_parser("kustomize").add_argument("folder")
    rollout = verbs.add_parser("rollout")
    rollout.add_argument("does", choices=["restart", "status"])
    rollout.add_argument("object")
    scale = verbs.add_parser("scale")
    scale.add_argument("object")
    scale.add_argument("--replicas", type=int, required=True)
    annotate = verbs.add_parser("annotate")
    annotate.add_argument("object")
    annotate.add_argument(
        "annotation", choices=["autoscaling.keda.sh/paused=true", "autoscaling.keda.sh/paused-"]
    )
    logs = verbs.add_parser("logs")
    logs.add_argument("--follow", action="store_true")
    logs.add_argument("object")
    forward = verbs.add_parser("port-forward")
    forward.add_argument("object")
    forward.add_argument("port", type=int)
    verbs.add_parser("get").add_argument("kind", choices=["pods", "scaledjob"])
    asked = parser.parse_args(words[1:])
    if folder := getattr(asked, "folder", None):
        assert (ROOT / folder / "kustomization.yaml").exists(), folder
    elif asked.verb != "apply":
        assert asked.namespace == "everydream"
    if named := getattr(asked, "object", None):
        kind, _, name = named.partition("/")
        assert (kind, name) in MANIFESTS, named


def manifests() -> set[tuple[str, str]]:
    """Kind, in small letters, and name of what deploy/kubernetes has."""
    files = (ROOT / "deploy" / "kubernetes").rglob("*.yaml")
    documents = (each for file in files for each in yaml.safe_load_all(file.read_text()))
    named = [each for each in documents if "metadata" in each]
    return {(each["kind"].lower(), each["metadata"]["name"]) for each in named}


MANIFESTS = manifests()


def check_curl(words: list[str]) -> None:
    """The gateway has the operation, and takes the body."""
    parser = Strict()
    parser.add_argument("url")
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="data")
    parser.add_argument("-T", dest="file")
    asked = parser.parse_args(words[1:])
    address = urlsplit(asked.url)
    assert address.netloc in GATEWAYS, address.netloc
    method = asked.method or ("POST" if asked.data else "PUT" if asked.file else "GET")
    operation = operation_of(method, address.path)
    assert operation, f"there is no {method} {address.path}"
    headers = dict(header.split(": ", 1) for header in asked.headers)
    if operation.get("security"):
        assert headers["Authorization"].startswith("Bearer ")
    if asked.data is not None:
        assert headers["Content-Type"] == "application/json"
        parse_request(json.loads(PLACEHOLDER.sub(A_JOB, asked.data)))


def check_request(words: list[str]) -> None:
    """The gateway has it, at the root or below the endpoint's base; prose may leave out the job."""
    path, base = words[1].partition("?")[0], OPENAPI["servers"][0]["url"]
    paths = (path, base + path, f"{base}{path}/ID")
    assert any(operation_of(words[0], each) for each in paths), words


def operation_of(method: str, asked: str) -> dict[str, Any] | None:
    """The operation of the OpenAPI document that a request reaches."""
    for path, methods in OPENAPI["paths"].items():
        served = methods.get("servers", OPENAPI["servers"])
        bases = "|".join(re.escape(server["url"].rstrip("/")) for server in served)
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))
        if re.fullmatch(f"(?:{bases}){pattern}", asked):
            found: dict[str, Any] | None = methods.get(method.lower())
            return found
    return None


def check_pip(words: list[str]) -> None:
    if words[1] == "freeze":
        return
    parser = Strict()
    parser.add_argument("verb", choices=["install"])
    parser.add_argument("packages", nargs="*")
    parser.add_argument("-c", dest="constraints", action="append", default=[])
    parser.add_argument("-e", dest="editable")
    asked = parser.parse_args(words[1:])
    extras = PROJECT["project"]["optional-dependencies"]
    for constraints in asked.constraints:
        assert (ROOT / constraints).exists()
    if asked.editable:
        found = re.fullmatch(r"\.\[([\w,]+)\]", asked.editable)
        assert found, asked.editable
        assert set(found[1].split(",")) <= extras.keys()
    listed = [re.split(r"[^\w.-]", each)[0] for extra in extras.values() for each in extra]
    assert set(asked.packages) <= set(listed), asked.packages


def check_python(words: list[str]) -> None:
    assert words[1] == "-m"
    assert importlib.util.find_spec(words[2]), words[2]
    if words[2] == "bench":
        assert (ROOT / "bench" / f"{words[3]}.py").exists(), words[3]


def check_pytest(words: list[str]) -> None:
    assert words[1] == "-m"
    markers = PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    assert any(marker.startswith(f"{words[2]}:") for marker in markers), words[2]


def check_copy(words: list[str]) -> None:
    assert (ROOT / words[1]).exists(), words[1]


def check_script(words: list[str]) -> None:
    script = ROOT / words[0]
    assert os.access(script, os.X_OK), script


def check_nothing(words: list[str]) -> None:
    """It is of the system, or of the broker, whose commands are the same for years."""


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "everydream": check_everydream,
    "make": check_make,
    "docker": check_docker,
    "kubectl": check_kubectl,
    "curl": check_curl,
    "pip": check_pip,
    ".venv/bin/pip": check_pip,
    "python": check_python,
    ".venv/bin/pytest": check_pytest,
    "cp": check_copy,
    "deploy/make-secrets.sh": check_script,
    "deploy/rabbitmq-users.sh": check_script,
    **dict.fromkeys(
        (
            ".",
            "echo",
            "git",
            "grep",
            "mkdir",
            "pg_dump",
            "pg_restore",
            "pre-commit",
            "rabbitmqctl",
            "set",
        ),
        check_nothing,
    ),
}


METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST")


def check(words: list[str]) -> None:
    """Check a command, what is put into its environment, and what it may be given to run."""
    words = words[words[0] == "export" :]
    while words and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0], re.DOTALL)):
        if assigned[1].startswith("EVERYDREAM_"):
            assert f"| `{assigned[1]}` |" in SETTINGS, assigned[1]
        elif " " in assigned[2]:
            check(assigned[2].split())
        del words[0]
    if words and words[0] in METHODS:
        check_request(words)
    elif words:
        assert words[0] in CHECKS, f"no check of {words[0]}"
        CHECKS[words[0]](words)


def is_command(span: Command) -> bool:
    """Whether code in a sentence is a command, rather than words of another language."""
    first = span.parts[0][0] if span.parts else ""
    return first in METHODS or first in CHECKS or first.startswith("deploy/")


TYPED = [command for block in SHELLS for command in commands_of(block)]
NAMED = [span for span in spans() if is_command(span)]


def test_there_are_commands_on_many_pages() -> None:
    assert len(TYPED) > 30
    assert len(NAMED) > 50
    assert len({command.place.partition(":")[0] for command in (*TYPED, *NAMED)}) > 15


@pytest.mark.parametrize(
    "command", [*TYPED, *NAMED], ids=lambda command: f"{command.place} {command.text[:40]}"
)
def test_every_command_in_the_documents_exists(command: Command) -> None:
    for words in command.parts:
        check(words)


@pytest.mark.parametrize("block", SHELLS, ids=lambda block: block.place)
def test_a_shell_takes_every_shell_block(block: Block) -> None:
    taken = subprocess.run(
        ["/bin/bash", "-n"], input=block.text, text=True, capture_output=True, check=False
    )
    assert (taken.returncode, taken.stderr) == (0, "")


def parse(block: Block) -> None:
    """Parse the text as what it is said to be."""
    match block.language:
        case "python":
            ast.parse(block.text)
        case "json":
            json.loads(block.text if block.text.startswith("{") else f"{{{block.text}}}")
        case "yaml":
            yaml.compose(block.text)
        case "" if (first := block.text.split()[0]) in CHECKS:
            raise AssertionError(f"{first} is a command, and the block is no {SHELL}")
        case language:
            assert language in {SHELL, "javascript", "go", "ini", ""}, language


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_every_block_is_what_it_is_said_to_be(block: Block) -> None:
    parse(block)
