"""Standard Webhooks signatures: HMAC-SHA256 over ``id.timestamp.body``."""

import base64
import hmac

PREFIX = "whsec_"


def headers(secret: str, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers by which a receiver verifies a webhook.

    Args:
        secret: ``whsec_`` and base64.
        webhook_id: the same for all attempts at one event.
        timestamp: of this attempt, in seconds since the epoch.
        body: the exact bytes that are sent.

    Source: the Standard Webhooks specification, "Signature scheme".
    """
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }
