"""One routing algorithm a file: pure functions from a router's logits to a Choice."""
