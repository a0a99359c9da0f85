"""Where workers run: processes of this host, actors of a Ray cluster, jobs of SLURM.

Every engine starts the same worker, ``search.workers.loop.serve(join, slot, stopping)``, and starts
another where one died, until the study needs nobody any more.
"""
