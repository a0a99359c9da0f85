"""The database, the study's directory and the artifact store."""
