"""From the files of repositories to clean documents."""
