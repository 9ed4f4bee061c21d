"""The notifier: publishes artifacts to users' buckets and delivers webhooks."""
