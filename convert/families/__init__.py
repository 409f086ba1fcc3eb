"""One module per model: its table, its settings, its command."""
