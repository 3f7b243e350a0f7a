"""One module per target runtime; a new target is one module and one line in the table here."""
