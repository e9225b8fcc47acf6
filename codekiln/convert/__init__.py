"""Import and export: released checkpoints to model directories, and model directories to other formats."""
