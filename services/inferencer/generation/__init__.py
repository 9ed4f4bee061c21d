"""The child's side: pipelines, schedulers and prompts, which know folders only."""
