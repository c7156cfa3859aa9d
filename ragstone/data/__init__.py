"""Files to examples. Every error names file and line."""
