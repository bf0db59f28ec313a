"""Building blocks of the transformer over tensor-parallel shards; Switch layers are in moe/."""
