"""Built-in plugins: loaded by name, imported only where they run."""
