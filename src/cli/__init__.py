"""The command line: arguments, one-line errors, and what the scripts print and write."""
