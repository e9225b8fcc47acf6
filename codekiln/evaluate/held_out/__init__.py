"""Problems made from held-out documents, of the same classes as published ones. The seed decides which."""
