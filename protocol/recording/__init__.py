"""The form of a recording: its records, their lines of text, and how a stream of bytes is cut into messages."""
