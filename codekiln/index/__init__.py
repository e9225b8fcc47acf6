"""An index over token ids: suffix arrays on the disk, and what is asked of them."""
