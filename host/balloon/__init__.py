"""The balloon device: what a chain on each queue asks for, statistics, free page hinting, features."""
