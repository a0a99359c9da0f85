"""Workers: claim trials, train them, report them; and the pool that runs workers."""
