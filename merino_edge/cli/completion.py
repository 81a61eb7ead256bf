"""`merino-edge completion`, and what the shell is offered for names: devices, runs, presets, recipes, spaces."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from merino_edge.cli.options import NamedText
from merino_edge.errors import MerinoEdgeError

PROGRAM = "merino-edge"
VARIABLE = "_MERINO_EDGE_COMPLETE"  # click's: set while a shell asks
# Parameters of the commands (`COMMAND.NAME` before `NAME`) -> what `merino_edge.flows.names` knows of them.
OFFERED = {
    "profile.device": "device-or-board",
    "search.device": "device-or-board",
    "report.run": "subject",
    "device": "device",
    "devices": "device",
    "name": "device",
    "board": "board",
    "subject": "subject",
    "subjects": "subject",
    "start_from": "subject",
    "teacher": "subject",
    "recipe": "recipe",
    "recipes": "recipe",
    "format": "format",
    "format_name": "format",
    "form": "form",
    "score": "score",
    "space": "space",
}
FILES_TOO = {"subject", "space"}


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    r"""Print the script that lets SHELL complete commands, options and names.

    \b
    bash  eval "$(merino-edge completion bash)"      in ~/.bashrc
    zsh   eval "$(merino-edge completion zsh)"       in ~/.zshrc, after compinit
    fish  merino-edge completion fish > ~/.config/fish/completions/merino-edge.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    group = click.Group(PROGRAM)  # the script holds names alone
    click.echo(found(group, {}, PROGRAM, VARIABLE).source(), nl=False)


class _Offered(NamedText):
    """A text for which known names are offered."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so; a path is left to the shell. A damaged file offers nothing."""
        from merino_edge.flows.names import NAMES

        if self._kind in FILES_TOO and incomplete.startswith(("/", ".", "~")):
            return [CompletionItem(incomplete, type="file")]
        try:
            names = NAMES[self._kind]()
        except (MerinoEdgeError, OSError):
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def offer_names(command: click.Command) -> click.Command:
    """Let the parameters of a command offer what they may be; called only while a shell asks."""
    for parameter in command.params:
        kind = OFFERED.get(f"{command.name}.{parameter.name}") or OFFERED.get(str(parameter.name))
        if kind is not None and parameter.type is click.STRING:
            parameter.type = _Offered(kind)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            if below.name != "add":  # a name that is yet to be given
                offer_names(below)
    return command
