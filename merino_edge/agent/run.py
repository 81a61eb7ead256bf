"""Continue a text with the model in this folder; no host, no network: python3 run.py "Once upon a time" (or --help).

A copy of this file lies in every release. It finds what the release was checked with (the agent's
program and the runtime, two folders up) and lets them do it: `run_command.py` in the agent. It is
written for Python 3.6, for a board's `python3` may be older than the one its runtime needs.
"""

import json
import os
import sys


def main() -> int:
    """Hand over to the agent's program under the interpreter that the release was checked with."""
    here = os.path.dirname(os.path.realpath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    try:
        with open(os.path.join(here, "release.json"), encoding="utf-8") as stream:
            note = json.load(stream)
        with open(os.path.join(root, "runtimes", "{}.json".format(note["runtime"])), encoding="utf-8") as stream:
            python = str(json.load(stream)["python"])
        agent = os.path.join(root, "agent-{}.pyz".format(note["agent"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return give_up(f"this release is not whole: {error}")
    for path in (python, agent):
        if not os.path.isfile(path):
            return give_up(f"this release was checked with {path}, which is gone")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    invoked = os.path.abspath(__file__)
    os.execve(python, [python, agent, "--standalone", here, invoked, *sys.argv[1:]], environment)


def give_up(problem: str) -> int:
    """Say what is missing and what to type."""
    sys.stderr.write(f"run.py: {problem}\n  next, on the host: merino-edge deploy\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
