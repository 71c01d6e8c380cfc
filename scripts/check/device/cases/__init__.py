"""The cases of a balloon device, by what they are about."""
