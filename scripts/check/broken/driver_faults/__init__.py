"""Drivers with one fault each."""
