"""The service.

`service` is all of it together: `stream` one client's stream, `admission` what is held at a time, `batching` the
threads that join requests, `launches` the map builder, `metrics` and `logs` what is told about it, `command` the
command.
"""
