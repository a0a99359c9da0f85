"""Exceptions of the search. Bad input is ``lesionseg.errors.InputError``.

Exit codes of the command line: 0 done; 1 the work failed (``JobFailed``); 2 bad input
(``InputError`` and usage errors); 3 of a worker: do not start it again (``WorkerBlocked``);
130 interrupted.
"""


class JobFailed(RuntimeError):
    """The input was valid but the work failed, such as a search without a complete trial.

    The command line prints the message in one line and exits with code 1.
    """


class WorkerBlocked(JobFailed):
    """A worker cannot train: a new one would fail in the same way until a person mends the cause.

    ``lesionsearch worker`` exits with WORKER_BLOCKED, so that no service manager starts it again.
    """


#: Exit code of ``lesionsearch worker`` after WorkerBlocked.
WORKER_BLOCKED = 3
