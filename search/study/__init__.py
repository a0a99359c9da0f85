"""Creating and opening a study, and what proposes and stops its trials."""
