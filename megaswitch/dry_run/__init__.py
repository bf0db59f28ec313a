"""One rank of a run, played without weights, data or other processes: the training step's own code on tensors that have
shapes and no elements, watched where torch carries operations out. It counts; it does not time."""
