"""The command line: one file per command; `main` finds the command and turns errors into a sentence and an exit status."""
