"""The notifier publishes artifacts to buckets and delivers webhooks."""
