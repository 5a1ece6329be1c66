"""Whether two final answers are the same: text rules, and mathematics in a process that may be lost."""
