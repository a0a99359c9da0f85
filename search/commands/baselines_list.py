"""``lesionsearch baselines list``: the published systems."""

from __future__ import annotations


def list_baselines() -> None:
    """List the published systems with their sources."""
    from search.monitoring.console import make_console
    from search.monitoring.tables import print_baselines
    from search.spec import baselines

    print_baselines(make_console(), baselines.load_baselines().values())
