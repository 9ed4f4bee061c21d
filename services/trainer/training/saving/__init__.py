"""What the training writes to disk: checkpoints, resume points, snapshots, metrics."""
