"""What every command needs around the model: configuration, checkpoints, optimisation, loops, logging, pictures."""
