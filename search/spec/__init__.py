"""Study files: YAML in, a checked StudySpec out."""
