"""`polyp tune`: the learning rate and the batch size to train with."""
