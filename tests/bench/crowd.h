// Opens and ends the connections of the clients, and counts what arrives.

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "frames.h"
#include "latency.h"

#define MARK "\"killmailId\":"
#define MARK_WITHIN 64
#define STALLED_BUFFER 4096
#define RESUME "{\"type\":\"resume\","
#define HEARTBEAT "{\"type\":\"heartbeat\","
#define REPLAYED "\"replayed\":"
#define INCOMPLETE "\"complete\":false"
#define PATH_LIMIT 1024 // bytes of a path with its query

enum state { IDLE, CONNECTING, SHAKING, OPEN, ENDED };

struct client {
  int fd;
  uint8_t state, stalled;
  int error; // errno of the connection's end
  unsigned answered;
  uint16_t code; // code of the server's close frame
  uint64_t updates, last;
  uint64_t promised; // the number of updates that the resume message announced
  struct frames frames;
  char answer[1024];
};

static struct {
  int port, epoll;
  unsigned clients, stalled, inflight, reconnect, hold, caught_up, reset, distinct, sse;
  uint64_t frames, quiet_us;
  const char *ready, *paths;
// The default of `quiet_us` is longer than the maximum time that the server gets to settle (SETTLE_LIMIT_S in
// process.py).
} ask = {.inflight = 256, .quiet_us = 25000000};

static struct client *all;
static unsigned *waiting; // a ring of the clients to connect next
static unsigned ring, ring_first, ring_count;
static unsigned opening, refused, cut;
static uint64_t frames_total, disorder, doubled, complete, pings, resumes, incomplete, complete_us;
static uint64_t first_us, last_us; // times of the first update and of the last one
static uint64_t stalled_us; // time of the last bytes for a stalled client
static struct latency latency, window;
static volatile sig_atomic_t in_window;
static char **paths; // client n requests the path n modulo their count
static unsigned paths_count;
static uint8_t buffer[1 << 18];
static uint64_t arrived_us;

static uint64_t now_us(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (uint64_t)at.tv_sec * 1000000 + (uint64_t)at.tv_nsec / 1000;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void enqueue(unsigned index) {
  waiting[(ring_first + ring_count++) % ring] = index;
}

// Returns the update's number, or 0. The function first looks at the place where it found the number of the previous
// update, because updates are similar.
static uint64_t number_of(const struct frames *frame) {
  static size_t place;
  size_t length = sizeof MARK - 1, within = frame->kept < MARK_WITHIN ? frame->kept : MARK_WITHIN;
  if (place + length > within || memcmp(frame->payload + place, MARK, length)) {
    const uint8_t *found = memmem(frame->payload, within, MARK, length);
    if (!found)
      return 0;
    place = (size_t)(found - frame->payload);
  }
  uint64_t number = 0;
  for (size_t at = place + length; at < frame->kept && frame->payload[at] >= '0' && frame->payload[at] <= '9'; at++)
    number = number * 10 + (frame->payload[at] - '0');
  return number;
}

static void on_complete_client(void) {
  complete++;
  complete_us = arrived_us;
}

static int begins(const struct frames *frame, const char *text) {
  size_t length = strlen(text);
  return frame->kept > length && !memcmp(frame->payload, text, length);
}

// Reads the message `resume`. This message is the first one to a client that resumes, and is not an update.
static void on_resume(struct client *client, const struct frames *frame) {
  const uint8_t *replayed = memmem(frame->payload, frame->kept, REPLAYED, sizeof REPLAYED - 1);
  resumes++;
  incomplete += memmem(frame->payload, frame->kept, INCOMPLETE, sizeof INCOMPLETE - 1) != NULL;
  if (replayed)
    for (const uint8_t *at = replayed + sizeof REPLAYED - 1; *at >= '0' && *at <= '9'; at++)
      client->promised = client->promised * 10 + (*at - '0');
  if (ask.caught_up && !client->promised)
    on_complete_client();
}

static void on_update(struct client *client, const struct frames *frame) {
  uint64_t number = number_of(frame);
  if (client->updates && number == client->last)
    doubled++;
  else if (client->updates && number < client->last)
    disorder++;
  client->last = number;
  uint64_t delay_us = arrived_us > number ? arrived_us - number : 0;
  if (number)
    latency_add(&latency, delay_us);
  if (number && in_window)
    latency_add(&window, delay_us);
  if (++client->updates == (ask.caught_up ? client->promised : ask.frames))
    on_complete_client();
  frames_total++;
}

// A client must mask its frames (section 5.3). A mask of zeros does not change the payload.
static void reply(struct client *client, uint8_t opcode, const struct frames *frame) {
  uint8_t answer[6 + KEPT] = {0x80 | opcode, 0x80 | frame->kept};
  memcpy(answer + 6, frame->payload, frame->kept);
  if (send(client->fd, answer, 6u + frame->kept, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EPIPE &&
      errno != ECONNRESET && errno != EAGAIN)
    fail("send");
}

static void on_complete(void *owner, const struct frames *frame) {
  struct client *client = owner;
  if (frame->opcode == TEXT && begins(frame, RESUME)) {
    on_resume(client, frame);
  } else if (frame->opcode == TEXT && begins(frame, HEARTBEAT)) {
    return; // a heartbeat is not an update
  } else if (frame->opcode == TEXT && !client->stalled) {
    on_update(client, frame);
  } else if (frame->opcode == PING) {
    pings++;
    reply(client, 10, frame);
  } else if (frame->opcode == CLOSE) {
    client->code = frame->kept < 2 ? 1005 : (uint16_t)(frame->payload[0] << 8 | frame->payload[1]);
    reply(client, CLOSE, frame);
  }
}

static void feed(struct client *client, const uint8_t *bytes, size_t size) {
  (ask.sse ? events_feed : frames_feed)(&client->frames, bytes, size, on_complete, client);
}

static void watch(struct client *client, int how, uint32_t events) {
  struct epoll_event event = {.events = events, .data.u32 = (uint32_t)(client - all)};
  if (epoll_ctl(ask.epoll, how, client->fd, &event))
    fail("epoll_ctl");
}

// Ends the connection, whatever its state is. With --reconnect, the client is queued to connect again.
static void end(struct client *client, int error) {
  unsigned was = client->state;
  close(client->fd);
  client->state = ENDED;
  client->error = error;
  if (was == OPEN) {
    cut += !client->stalled;
  } else {
    opening--;
    refused++;
  }
  if (ask.reconnect) {
    client->state = IDLE;
    enqueue((unsigned)(client - all));
  }
}

static void begin(struct client *client) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)ask.port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (client->fd < 0)
    fail("socket");
  int small = STALLED_BUFFER;
  // The buffer size must be set before the connection is opened, because the TCP handshake announces a window of this
  // size.
  if (client->stalled && setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small))
    fail("setsockopt");
  struct linger at_once = {1, 0}; // the kernel then resets the connection instead of closing it
  if (ask.reset && setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once))
    fail("setsockopt");
  client->state = CONNECTING;
  client->answered = client->code = 0;
  memset(&client->frames, 0, sizeof client->frames);
  opening++;
  int status = connect(client->fd, (struct sockaddr *)&address, sizeof address);
  if (status && errno != EINPROGRESS)
    end(client, errno);
  else
    watch(client, EPOLL_CTL_ADD, EPOLLOUT);
}

static void on_connected(struct client *client) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  static char request[PATH_LIMIT + 256], header[64];
  const char *path = paths_count ? paths[(unsigned)(client - all) % paths_count] : "/updates";
  if (ask.distinct)
    snprintf(header, sizeof header, "Sec-WebSocket-Protocol: load-%u\r\n", (unsigned)(client - all));
  const char *upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
  int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost:%d\r\n%s%s\r\n", path, ask.port,
                        ask.sse ? "Accept: text/event-stream\r\n" : upgrade, header);
  if (error || send(client->fd, request, (size_t)length, MSG_NOSIGNAL) != length) {
    end(client, error);
    return;
  }
  client->state = SHAKING;
  watch(client, EPOLL_CTL_MOD, EPOLLIN);
}

static void on_answer(struct client *client) {
  ssize_t got = recv(client->fd, client->answer + client->answered, sizeof client->answer - client->answered, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR))
    return;
  if (got <= 0) {
    end(client, errno);
    return;
  }
  client->answered += (unsigned)got;
  char *blank = memmem(client->answer, client->answered, "\r\n\r\n", 4);
  int wrong = client->answered >= 12 && memcmp(client->answer, ask.sse ? "HTTP/1.1 200" : "HTTP/1.1 101", 12);
  if (wrong || (!blank && client->answered == sizeof client->answer)) {
    end(client, 0);
    return;
  }
  if (!blank)
    return;
  client->state = OPEN;
  opening--;
  if (client->stalled)
    watch(client, EPOLL_CTL_DEL, 0);
  size_t size = (size_t)(blank + 4 - client->answer);
  arrived_us = now_us();
  feed(client, (uint8_t *)client->answer + size, client->answered - size);
}

// Reads only once: if less arrives than was asked for, the socket is empty, and a second read would double the system
// calls.
static void on_bytes(struct client *client) {
  ssize_t got = recv(client->fd, buffer, sizeof buffer, 0);
  if (got > 0) {
    arrived_us = now_us();
    if (client->stalled)
      stalled_us = arrived_us;
    feed(client, buffer, (size_t)got);
  } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
    end(client, got ? errno : 0);
  }
}

static void turn(int timeout_ms) {
  static struct epoll_event events[512];
  while (ring_count && opening < ask.inflight) {
    unsigned index = waiting[ring_first];
    ring_first = (ring_first + 1) % ring;
    ring_count--;
    begin(&all[index]);
  }
  uint64_t before = frames_total;
  int count = epoll_wait(ask.epoll, events, 512, timeout_ms);
  for (int i = 0; i < count; i++) {
    struct client *client = &all[events[i].data.u32];
    if (client->state == CONNECTING)
      on_connected(client);
    else if (client->state == SHAKING)
      on_answer(client);
    else if (client->state == OPEN)
      on_bytes(client);
  }
  if (frames_total > before) {
    last_us = arrived_us;
    first_us = first_us ? first_us : arrived_us;
  }
}
