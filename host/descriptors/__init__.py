"""Received file descriptors: what they are, and how they are read without waiting."""
