"""One file per subcommand: a settings dataclass, an ordinary function that returns its result, and how it is shown."""
