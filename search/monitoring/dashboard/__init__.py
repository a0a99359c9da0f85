"""The dashboard: server, access control, pages and plots."""
