"""Status of studies in the terminal and in the dashboard."""
