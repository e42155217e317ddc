"""The command line: one file a command; here objects are built from configuration."""
