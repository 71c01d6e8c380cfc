"""Cases for any vhost-user back-end, whatever its device: what of the protocol has nothing to do with the device.

Rings are set up empty and nothing is asked of the device itself. A buffer is offered only where the back-end must not
touch it.
"""
