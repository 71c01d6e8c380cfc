"""Devices with one fault each, a module for each part of a device."""
