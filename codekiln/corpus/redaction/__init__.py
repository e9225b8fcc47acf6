"""What redaction finds in a text, and what it puts there."""
