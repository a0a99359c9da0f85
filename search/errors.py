"""Exceptions of the search. Bad input is ``lesionseg.errors.InputError``."""


class JobFailed(RuntimeError):
    """The work was done as asked and came to nothing; the command line exits with code 1."""
