"""What learns: the loop of everything that is trained, and the training of whole networks."""
