"""Run the command as `python -m merino_edge.cli`."""

from merino_edge.cli.main import main

main()
