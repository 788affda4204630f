"""The one exception that means "the user can mend this"."""


class W2WError(Exception):
    """Bad input. The message is one line: what was found, what was expected, what to do.

    The command line prints it without a traceback and exits with code 2.
    """
