"""The planner: which study fits the data, the machine and the time."""
