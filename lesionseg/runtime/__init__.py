"""Device, memory, threads and speed of the machine that computes."""
