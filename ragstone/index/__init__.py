"""Vectors to the nearest ids: FAISS indexes built, saved, opened memory-mapped; exact search as their oracle."""
