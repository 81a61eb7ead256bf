"""The command `merino-edge`: finds the subcommand, runs it, turns every error into one line and an exit code.

Subcommands are imported when they are called, so that `--help` is quick.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from typing import Any

import click

from merino_edge import __version__
from merino_edge.errors import (
    InternalError,
    InterruptedByUser,
    InvalidFileError,
    MerinoEdgeError,
    UsageError,
    did_you_mean,
)

_REPORT = "this is a mistake in merino-edge: please report it with the lines above"
_HELP_IS_ASKED = "help"

COMMANDS = {
    "profile": "Measure a device and fit its latency model.",
    "search": "Find the best architecture for a device under limits.",
    "show": "Print an architecture: blocks, parameters, FLOPs, entropy, memory.",
    "train": "Train the found architecture on your text.",
    "evaluate": "Score a trained model: perplexity, zero-shot tasks, exported files.",
    "export": "Write the model as ONNX or TFLite, quantized, shared weights shared.",
    "deploy": "Put the model onto the device, check it there, switch to it.",
    "generate": "Generate text with the deployed model.",
    "serve": "Serve the deployed model over HTTP, as OpenAI's completions.",
    "bench": "Measure speed, memory and perplexity on the device.",
    "report": "Write a run as one HTML page, with its charts.",
    "devices": "List, add and remove devices.",
    "doctor": "Check this host and the devices; print what mends each problem.",
    "config": "Show your settings and where each comes from.",
    "completion": "Print the script that lets your shell complete names.",
}


class LazyGroup(click.Group):
    """A group whose commands are modules of `merino_edge.cli`, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the ring."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"merino_edge.cli.{cmd_name}")
        command: click.Command = _with_paragraphs_as_written(module.command)
        if "_MERINO_EDGE_COMPLETE" in os.environ:  # a shell asks what may come next
            from merino_edge.cli.completion import offer_names

            return offer_names(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Offer the nearest command for an unknown one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UsageError(f"there is no command '{args[0]}'{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="merino-edge")
@click.pass_context
def cli(ctx: click.Context) -> None:
    r"""Find the best small language model for your board, train it, put it there, and measure it there.

    \b
    The ring:  profile -> search -> train -> export -> deploy -> bench -> search again
    Start:     merino-edge profile            (this machine; or: profile pi4 --host pi@ADDRESS)
               merino-edge search --latency 5ms
    """
    from merino_edge.cli.settings import apply_settings

    group = cli
    if ctx.obj == _HELP_IS_ASKED or ctx.invoked_subcommand == "completion":  # a damaged file must not hide these
        return
    ctx.default_map = apply_settings(list(COMMANDS), lambda name: group.get_command(ctx, name))


def _with_paragraphs_as_written(command: click.Command) -> click.Command:
    """Turn the two characters that a raw docstring holds into the one by which click leaves a paragraph as it is."""
    command.help = (command.help or "").replace("\\b\n", "\b\n")
    return command


_with_paragraphs_as_written(cli)


def main(argv: list[str] | None = None) -> None:
    """Run the command and exit with its code."""
    args = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        wish = _HELP_IS_ASKED if {"-h", "--help"} & set(args) else None
        cli.main(args=args, prog_name="merino-edge", standalone_mode=False, obj=wish)
        sys.stdout.flush()
        code = 0
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        code = _report(UsageError(error.format_message(), hint=_usage_hint(error, args)), args)
    except MerinoEdgeError as error:
        code = _report(error, args)
    except (KeyboardInterrupt, click.Abort):
        code = _report(InterruptedByUser("interrupted; what was complete is kept"), args)
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _close_output()  # the reader of a pipe has gone; click makes that its own exit
        code = 141
    except Exception as error:  # noqa: BLE001  a mistake of ours: say so, and keep the promise of --json
        code = _report_unforeseen(error, args)
    sys.exit(code)


def _usage_hint(error: click.ClickException | None, args: list[str]) -> str:
    context = getattr(error, "ctx", None)
    if context:
        return f"{context.command_path} --help"
    return f"merino-edge {args[0]} --help" if args and args[0] in COMMANDS else "merino-edge --help"


def _close_output() -> None:
    """Send what is still to be written nowhere, or Python would fail at it once more as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_unforeseen(error: Exception, args: list[str]) -> int:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _close_output()
        where = error.filename or "the output"
        full = MerinoEdgeError(f"cannot write {where}: {error.strerror}", hint="free some space, or write elsewhere")
        return _report(full, args)
    import traceback

    traceback.print_exc()
    return _report(InternalError(f"internal error: {type(error).__name__}: {error}", hint=_REPORT), args)


def _report(error: MerinoEdgeError, args: list[str]) -> int:
    if error.hint is None and isinstance(error, UsageError):
        error.hint = _usage_hint(None, args)
    if error.hint is None and isinstance(error, InvalidFileError):
        error.hint = "correct the file, or name another"
    if "--json" in args:
        from merino_edge.cli.output import print_json

        document: dict[str, Any] = {"error": error.to_json()}
        if "partial" in error.details:
            document = {**document["error"].pop("partial"), **document}
        print_json(document)
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"  next: {error.hint}", err=True)
    return error.exit_code
