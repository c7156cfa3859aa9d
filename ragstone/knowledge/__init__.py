"""Documents to a knowledge source: split, embed, store, build, verify. Knows nothing about generators."""
