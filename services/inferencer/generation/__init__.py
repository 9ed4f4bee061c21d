"""The child's side: pipelines, schedulers and prompts. It sees local folders only."""
