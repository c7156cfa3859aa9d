"""Question vectors to passages. Every backend is a Retriever."""
