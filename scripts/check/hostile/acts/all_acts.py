"""All acts: importing this module adds every one."""

from scripts.check.hostile.acts import memory_acts, message_acts, ring_acts
from scripts.check.hostile.acts.act import ACTS

MODULES = (message_acts, ring_acts, memory_acts)
"""The modules of acts, each of which has added its own."""

ALL_ACTS = ACTS
