"""Judges balloon devices, vhost-user back-ends and balloon drivers by the clauses of the specifications."""
