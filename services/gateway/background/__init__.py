"""What the gateway does beside HTTP: record facts, supervise workers, relay the outbox."""
