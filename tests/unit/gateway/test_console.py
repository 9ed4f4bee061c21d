"""What a browser may load for the console."""

from __future__ import annotations

import pytest

from services.gateway.endpoints.browser.console import policy


def sources(link: str) -> dict[str, list[str]]:
    parts = [part.split() for part in policy(link).split("; ")]
    return {name: rest for name, *rest in parts}


@pytest.mark.parametrize("store", ["https://s3.example.com", "http://127.0.0.1:8080"])
def test_the_page_shows_and_reads_images_of_the_store_and_of_no_other_place(store: str) -> None:
    allowed = sources(f"{store}/bucket/any?X-Amz-Signature=1")

    assert allowed["img-src"] == ["'self'", "blob:", store]
    assert allowed["connect-src"] == ["'self'", store]
    assert allowed["default-src"] == ["'none'"]
    assert [name for name, rest in allowed.items() if store in rest] == ["connect-src", "img-src"]
