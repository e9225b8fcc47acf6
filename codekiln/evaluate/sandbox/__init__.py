"""The sandbox: runs programs that models wrote, and judges them. Importing it imports nothing else."""
