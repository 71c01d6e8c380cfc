"""The host's side: a vhost-user back-end for virtio-balloon. Imports ``protocol``, never ``guest``."""
