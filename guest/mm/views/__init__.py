"""The memory views of /proc: buddyinfo, pagetypeinfo, zoneinfo; and a machine built from a buddyinfo."""
