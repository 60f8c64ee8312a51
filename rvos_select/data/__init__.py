"""From caches to batches: what a selector reads."""
