"""The gateway's background tasks: record facts, supervise workers, relay the outbox."""
