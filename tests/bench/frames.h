// Parses a server's WebSocket frames (RFC 6455, section 5.2) or Server-Sent Events from bytes that can be split anywhere.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TEXT = 1, CLOSE = 8, PING = 9 };

// This many bytes of a payload are kept: enough for a whole control frame, and for the number of an update.
#define KEPT 125

struct frames {
  uint64_t left; // bytes of the payload that are still to come
  uint8_t head[10], have, opcode, in_payload, kept;
  uint8_t payload[KEPT];
};

typedef void on_frame(void *owner, const struct frames *frame);

static unsigned frames_head_size(const struct frames *at) {
  unsigned size = at->have < 2 ? 0 : at->head[1] & 127;
  return size == 127 ? 10 : size == 126 ? 4 : 2;
}

static uint64_t frames_payload_size(const struct frames *at, unsigned head_size) {
  uint64_t size = 0;
  if (head_size == 2)
    return at->head[1] & 127;
  for (unsigned i = 2; i < head_size; i++)
    size = size << 8 | at->head[i];
  return size;
}

// Calls `complete` at the last byte of each frame.
static void frames_feed(struct frames *at, const uint8_t *bytes, size_t size, on_frame *complete, void *owner) {
  const uint8_t *end = bytes + size;
  while (bytes < end) {
    if (!at->in_payload) {
      at->head[at->have++] = *bytes++;
      unsigned head_size = frames_head_size(at);
      if (at->have < head_size)
        continue;
      at->left = frames_payload_size(at, head_size);
      at->opcode = at->head[0] & 15;
      at->in_payload = 1;
      at->have = at->kept = 0;
    }
    size_t part = (size_t)(end - bytes) < at->left ? (size_t)(end - bytes) : (size_t)at->left;
    size_t keep = part < (size_t)(KEPT - at->kept) ? part : (size_t)(KEPT - at->kept);
    memcpy(at->payload + at->kept, bytes, keep);
    at->kept += (uint8_t)keep;
    at->left -= part;
    bytes += part;
    if (at->left)
      return;
    at->in_payload = 0;
    complete(owner, at);
  }
}

#define DATA "data: "

// Calls `complete` at the end of each `data` line, with the line's value as the payload of a text frame.
static void events_feed(struct frames *at, const uint8_t *bytes, size_t size, on_frame *complete, void *owner) {
  const uint8_t *end = bytes + size;
  size_t prefix = sizeof DATA - 1;
  while (bytes < end) {
    const uint8_t *line_end = memchr(bytes, '\n', (size_t)(end - bytes)), *until = line_end ? line_end : end;
    while (bytes < until && at->have < prefix)
      at->head[at->have++] = *bytes++;
    size_t part = (size_t)(until - bytes), keep = part < (size_t)(KEPT - at->kept) ? part : (size_t)(KEPT - at->kept);
    memcpy(at->payload + at->kept, bytes, keep);
    at->kept += (uint8_t)keep;
    if (!line_end)
      return;
    bytes = line_end + 1;
    at->opcode = TEXT;
    if (at->have == prefix && !memcmp(at->head, DATA, prefix))
      complete(owner, at);
    at->have = at->kept = 0;
  }
}
