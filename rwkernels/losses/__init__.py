"""The losses: functions and modules over maps and labels."""
