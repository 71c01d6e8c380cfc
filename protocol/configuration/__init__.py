"""Text that people write: tables of TOML files, read so that a mistake is one line with its place."""
