"""Recordings of sessions: explains them, exports them, and makes them of the check tools' own connections."""
