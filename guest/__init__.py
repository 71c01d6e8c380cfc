"""The guest's side: an emulated virtual machine and a launcher for a real one. Imports ``protocol``, not ``host``."""
