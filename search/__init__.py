"""The search: study files, samplers, pruners, storage, workers, the final test, the report."""
