"""Faults between a vhost-user front-end and a back-end, told by scripts and carried out by a proxy."""
