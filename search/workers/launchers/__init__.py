"""Launchers run workers as local processes, as actors of a Ray cluster or as SLURM jobs.

Each starts ``search.workers.loop.join_and_run_trials`` and restarts workers that died, until the
study needs none.
"""
