"""The receiver of webhooks that the docs show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from services.notifier.webhook import post
from shared.keys import webhook_secret
from shared.messaging.messages import WebhookDelivered, WebhookDue, WebhookFailed
from shared.network.outbound import guarded_session
from tests.support.servers.process import HOST

PAGE = Path(__file__).parents[3] / "docs" / "endpoint.md"
SECRET = webhook_secret(None, "a key of thirty-two letters or more")
OTHER = webhook_secret(None, "another key of thirty-two letters or more")


@pytest.fixture
def receiver() -> Iterator[str]:
    """The page's own text at work, with our secret."""
    (text,) = re.findall(r"```python\n(from http.server.+?)```", PAGE.read_text(), re.DOTALL)
    assert "whsec_..." in text
    names: dict[str, Any] = {}
    exec(text.replace("whsec_...", SECRET), names)  # noqa: S102 - our own page
    server = HTTPServer((HOST, 0), names["Receiver"])
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/hook"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def posted(url: str, secret: str) -> WebhookDelivered | WebhookFailed:
    body = '{"id":"7b1c","output":{"prompt":"ein Fu\u00df"},"status":"COMPLETED"}'
    due = WebhookDue(job="7b1c", run=1, attempt=1, url=url, webhook_id="msg-1", body=body)
    allowed = frozenset({HOST})
    async with guarded_session(allowed) as session:
        return await post(session, secret, allowed, due)


async def test_the_page_s_receiver_takes_our_webhooks_and_no_others(
    receiver: str, capfd: pytest.CaptureFixture[str]
) -> None:
    taken = await posted(receiver, SECRET)
    forged = await posted(receiver, OTHER)

    assert isinstance(taken, WebhookDelivered)
    assert isinstance(forged, WebhookFailed)
    assert forged.reason == "answered with status 401"
    assert capfd.readouterr().out == "7b1c COMPLETED\n"
