"""What a run leaves: checkpoints, and the finished model folder."""
