"""The guest's memory manager, cut and named as in Linux's ``mm/``. Pure: no operating system, no clock of its own."""
