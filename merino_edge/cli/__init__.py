"""The command line: each module parses one command, calls one flow and prints what it returned."""
