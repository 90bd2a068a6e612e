"""Study files, and the command that runs them: python -m studies FILE.toml."""
