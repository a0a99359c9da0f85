"""``lesionsearch baselines list``: the published systems."""

from __future__ import annotations


def list_baselines() -> None:
    """List the published systems with their sources."""
    from search.monitoring import tables as show
    from search.spec import baselines

    show.print_baselines(show.make_console(), baselines.load_baselines().values())
