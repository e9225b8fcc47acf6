"""Where files come from. A source lists files with the licence that is declared for them; it reads no content."""
