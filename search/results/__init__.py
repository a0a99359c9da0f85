"""What a finished search yields: final model, predictions, report, baseline table."""
