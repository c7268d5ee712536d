"""Every metric as a pure numpy function. No clock, no socket, no thread, no Prometheus."""
