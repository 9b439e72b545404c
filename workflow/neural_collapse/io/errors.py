"""The exception for invalid input."""


class UserError(ValueError):
    """Input that the user can fix: one sentence saying what is wrong, where, and what to do.

    The command line prints the sentence alone and exits with status 2; code that calls the
    library sees a ``ValueError``.
    """
