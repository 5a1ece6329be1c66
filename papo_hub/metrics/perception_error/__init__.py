"""Whether wrong answers come from reading the image wrongly."""
