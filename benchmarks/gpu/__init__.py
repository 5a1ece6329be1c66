"""What the full-size architecture does on a GPU: passes, memory, sampling, and how exact bfloat16 is."""
