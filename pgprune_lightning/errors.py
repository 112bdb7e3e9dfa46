"""The one kind of error that a person using the program can act on."""

EXIT_USER_ERROR = 2
"""The exit status of such an error."""


class UserError(ValueError):
    """Something in the input, the data or the machine must be changed by the user.

    The message says what was given, what is allowed and what to do. The command line prints it
    without a traceback and exits with a non-zero status; any other exception is a defect of ours.
    """
