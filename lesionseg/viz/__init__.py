"""Pictures: overlays, contact sheets, trial sheets."""
