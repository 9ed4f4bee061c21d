"""The gateway admits jobs, keeps their record, grants claims and supervises them."""
