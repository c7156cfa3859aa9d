"""Several processes that work on one run: started, told apart, exchanging messages, watched."""
