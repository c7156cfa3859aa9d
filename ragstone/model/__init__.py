"""Questions to answers: contexts, generators, marginalisation, decoding, the models, their checkpoints."""
