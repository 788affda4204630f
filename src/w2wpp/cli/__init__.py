"""The command `w2w`: every verb parses, calls the library once, and says where the result is."""

import errno
import os
import sys

import typer

from w2wpp import __version__
from w2wpp.cli import data, editing, judging, models, spaces
from w2wpp.errors import W2WError

app = typer.Typer(
    help="Weights2Weights++: from photos to a space of personal diffusion adapters, and back from a photo to a new model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (data, spaces, editing, models, judging):
    group.register(app)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"w2wpp {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version and stop."),
) -> None:
    # The libraries' own chatter says nothing that a user of w2w can act on; warnings of Python stay.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def main() -> None:
    """Run `w2w`. Bad input and a full disk end in one line on stderr and exit code 2."""
    try:
        app(prog_name="w2w")
    except W2WError as error:
        fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
            raise
        fail(f"{error.filename or 'a file'}: {error.strerror}. Nothing that existed was changed.")


def fail(message: str) -> None:
    from w2wpp.runs import log

    log.error(message)
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
