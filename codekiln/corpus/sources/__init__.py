"""Sources list files with their declared license. They do not read content."""
