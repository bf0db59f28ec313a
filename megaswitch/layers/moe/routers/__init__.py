"""One routing algorithm a file: functions from a router's scores to a Choice."""
