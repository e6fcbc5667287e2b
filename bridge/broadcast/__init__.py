"""Which subscriber gets which update, and when. One log, many cursors; no handshakes."""
