"""Which subscriber gets which update, and when: one log, and a cursor for each connection. No handshakes."""
