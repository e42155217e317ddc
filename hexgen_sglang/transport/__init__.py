"""How link messages travel: over ZMQ (`zmq_link`), or in memory for tests (`memory`)."""
