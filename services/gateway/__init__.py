"""The gateway admits jobs over HTTP and from the broker, keeps their record, grants and supervises claims."""
