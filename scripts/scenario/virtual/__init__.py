"""The run of a scenario in virtual time, without processes and without memory."""
