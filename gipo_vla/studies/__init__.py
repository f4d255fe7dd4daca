"""Stand-alone studies of the method; each is a command of its own."""
