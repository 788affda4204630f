"""The exception that means "the user can mend this"."""


class W2WError(Exception):
    """Bad input. The message is one line: what was found, what was expected, what to do.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # Names come from other people's files: a newline or an escape code in one must not reach the terminal.
        line = " ".join(message.split())
        super().__init__("".join(letter if letter.isprintable() else "?" for letter in line)[:2000])


class Unreached(W2WError):
    """A storage did not answer, or refused: what lies there is not known, so nothing may be concluded about it."""
