"""What a run is made of, one section for each kind of message; each turns messages into readings.

No clock, no socket, no Prometheus: time comes in as an argument, readings go out.
"""
