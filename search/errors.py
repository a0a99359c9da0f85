"""Exceptions of the search. Bad input is ``lesionseg.errors.InputError``.

Exit codes of the command line: 0 done; 1 the work failed (``JobFailed``); 2 bad input
(``InputError`` and usage errors); 130 interrupted.
"""


class JobFailed(RuntimeError):
    """The input was valid but the work failed, such as a search without a complete trial.

    The command line prints the message in one line and exits with code 1.
    """
