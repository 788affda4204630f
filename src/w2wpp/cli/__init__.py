"""The command `w2w`: every verb parses, calls the library, and says where the result is.

Nothing here computes: what Python users need too lives in the rooms below.
"""

import errno
import io
import os
import sys

import typer

from w2wpp import __version__
from w2wpp.cli import (
    adapters,
    base,
    data,
    editing,
    exploring,
    exporting,
    fitting,
    fitting_photos,
    fleet,
    generating,
    importing,
    inverting,
    prior,
    scoring,
    spaces,
)
from w2wpp.cli.help import ABOUT, Root, overview
from w2wpp.common.errors import W2WError
from w2wpp.common.progress import VERBOSE

# What the system says of places and room, and the user can change.
TOLD = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOENT),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
)
# A command line that does not parse: an error of typer's own, of click in typer's older versions.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    cls=Root,
    help=ABOUT,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (
    data,
    base,
    adapters,
    fitting,
    fitting_photos,
    prior,
    spaces,
    editing,
    exploring,
    inverting,
    generating,
    exporting,
    importing,
    fleet,
    scoring,
):
    group.register(app)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"w2wpp {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show what other libraries say, and their bars of loading."),
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version and stop."),
) -> None:
    if verbose:
        os.environ[VERBOSE] = "1"
    else:  # the libraries' own chatter says nothing that a user of w2w can act on; warnings of Python stay
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if context.invoked_subcommand is None:
        print(overview(context.command))


def main() -> None:
    """Run `w2w`. Bad input and a full disk end in one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows its number, and the command goes on
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(prog_name="w2w", standalone_mode=False)
    except UsageError as error:
        misused(error)
    except typer.Abort:
        sys.exit(1)
    except W2WError as error:
        fail(str(error))
    except OSError as error:
        if error.errno not in TOLD:
            raise
        fail(f"{error.filename or 'a file'}: {error.strerror}. Nothing that existed was changed.")
    else:
        sys.exit(code if isinstance(code, int) else 0)


def misused(error: Exception) -> None:
    """Say what is wrong with the command line, and where the options are explained."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
        sys.exit(2)
    where = context.command_path if context else "w2w"
    said = getattr(error, "format_message", error.__str__)()
    fail(f"{said.rstrip('.')}. `{where} --help` lists what there is.")


def fail(message: str) -> None:
    from w2wpp.common.runs import log

    log.error(message)
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
