"""Share of responses that keep the format."""
