"""What a user would write; docs/extending.md goes through the files."""
