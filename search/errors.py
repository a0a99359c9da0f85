"""Exceptions of the search. Bad input is ``lesionseg.errors.InputError``.

Exit codes of the command line: 0 done; 1 the work failed (``JobFailed``); 2 bad input
(``InputError`` and usage errors); 3 a worker cannot train (``WorkerBlocked``);
130 interrupted.
"""


class JobFailed(RuntimeError):
    """The input was valid but the work failed, such as a search without a complete trial.

    The command line prints the message in one line and exits with code 1.
    """


class WorkerBlocked(JobFailed):
    """A worker cannot train, and a restart would fail in the same way.

    ``lesionsearch worker`` exits with WORKER_BLOCKED, so that service managers do not restart it.
    """


#: Exit code of ``lesionsearch worker`` after WorkerBlocked.
WORKER_BLOCKED = 3
