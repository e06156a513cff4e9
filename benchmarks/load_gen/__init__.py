"""Who sends the load: Locust workers, their pool, the target, the requests."""
