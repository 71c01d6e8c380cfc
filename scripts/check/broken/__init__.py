"""Devices and drivers with one fault each, on purpose: a check that does not catch them checks nothing."""
