"""What the tests share: servers, played workers, small models, hostile inputs."""
