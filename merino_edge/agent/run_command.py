"""The command line of a release's own `run.py`: one text, or a socket that serves, or the unit that starts it."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Any, Sequence

from merino_edge.agent import line_server
from merino_edge.agent.errors import AgentError
from merino_edge.agent.standalone import DEFAULTS, Model, check_options
from merino_edge.agent.text import visible

EXIT_CODES = {"busy": 4, "request": 2, "cancelled": 130}


def parser_of(program: str) -> argparse.ArgumentParser:
    """Return the parser of a release's `run.py`."""
    parser = argparse.ArgumentParser(
        prog=program,
        allow_abbrev=False,
        description="Continue PROMPT with the model deployed here; the text streams as it comes.",
    )
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to continue")
    parser.add_argument("--max-tokens", type=int, help="at most so many new tokens (%(default)s)")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token (%(default)s)")
    parser.add_argument("--top-p", type=float, help="smallest set of this probability (%(default)s)")
    parser.add_argument("--top-k", type=int, help="at most so many candidates; 0 for all (%(default)s)")
    parser.add_argument("--seed", type=int, help="same seed, same text (%(default)s)")
    parser.add_argument("--stop", action="append", default=[], help="text at which to stop; may be repeated")
    parser.add_argument("--threads", type=int, help="for the model (all performance cores)")
    parser.add_argument(
        "--socket", metavar="PATH", help="without a prompt, serve on this UNIX socket; with one, ask who serves there"
    )
    parser.add_argument("--systemd", action="store_true", help="print a systemd user unit that serves from boot on")
    parser.set_defaults(**DEFAULTS)
    return parser


def main(folder: Path, invoked: str, words: Sequence[str]) -> int:
    """Do what `run.py` was asked for.

    Args:
        folder: The release.
        invoked: How its `run.py` was called: by way of `current`, or not.
        words: The command line.
    """
    parser = parser_of(os.path.basename(invoked))
    asked = parser.parse_args(list(words))
    try:
        return _do(parser, asked, folder, invoked, words)
    except AgentError as error:
        sys.stderr.write(f"{parser.prog}: {error.message}\n" + (f"  next: {error.hint}\n" if error.hint else ""))
        return EXIT_CODES.get(error.kind, 1)
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130
    except BrokenPipeError:  # whoever read us has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would fail at it once more as it ends
        where = error.filename or "the output"
        sys.stderr.write(f"{parser.prog}: cannot write {where}: {error.strerror}\n  next: free some space\n")
        return 1


def _do(parser: argparse.ArgumentParser, asked: Any, folder: Path, invoked: str, words: Sequence[str]) -> int:
    if asked.systemd:
        Model(folder, asked.threads).close()  # a unit that could not serve is not worth printing
        sys.stdout.write(line_server.unit_text(sys.executable, invoked))
        sys.stderr.write(line_server.unit_steps(sys.executable, invoked))
        return 0
    options = {name: getattr(asked, name) for name in (*DEFAULTS, "stop")}
    if asked.prompt is None:
        if asked.socket is None:
            parser.error("a PROMPT is needed (or --socket PATH, to serve)")
        return line_server.serve(Model(folder, asked.threads), asked.socket, invoked, words)

    shown = False

    def emit(text: str) -> None:
        nonlocal shown
        sys.stdout.write(visible(text if shown else asked.prompt + text))
        sys.stdout.flush()
        shown = True

    if asked.socket is not None:
        done = line_server.ask(asked.socket, {"prompt": asked.prompt, **options}, emit)
    else:
        check_options(options)
        with contextlib.closing(Model(folder, asked.threads)) as model:
            done = model.generate(asked.prompt, options, emit)
    sys.stdout.write("\n")
    sys.stdout.flush()
    sys.stderr.write("{tokens} tokens, {tokens_per_s:.1f} tokens/s\n".format(**done))
    return 0
