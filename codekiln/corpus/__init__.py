"""The corpus: from files of repositories to clean documents."""
