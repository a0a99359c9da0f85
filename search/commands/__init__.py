"""The commands, one module per command or group: parse, call, print."""
