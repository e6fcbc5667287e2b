// load PORT CLIENTS [OPTION ...]: many clients of ws://127.0.0.1:PORT/updates, in one thread.
//
// The program opens the connections, reads all updates, prints one line of JSON (number, delay and order of updates)
// and stays connected until SIGTERM. In each update, the killmailId, which is near the start, is the time of
// publication in microseconds of CLOCK_MONOTONIC.
//
//   --inflight W   the maximum number of unfinished handshakes (256)
//   --frames F     print when each client has F updates; without it and --hold, print as soon as all are open
//   --quiet-s S    print also when nothing arrived for S seconds (25)
//   --stalled K    K additional clients with a small receive buffer; they read nothing until the others are done
//   --hold         read until SIGTERM, and then print
//   --reconnect    as --hold; at SIGUSR1, drop all connections and open them again
//   --reset        reset each connection when it is closed
//   --paths FILE   the paths to request instead of /updates, one per line, by the clients in turn
//   --distinct     each client sends another Sec-WebSocket-Protocol; without it, the requests for a path are equal
//   --sse          Server-Sent Events instead of WebSocket
//   --caught-up    print when each client has the number of updates that its `resume` message announced
//   --ready FILE   create FILE when all are open, and again when all are open again
//
// SIGUSR2 begins or ends a window. The delays of updates that arrive in a window are also counted separately.

#define _GNU_SOURCE
#include <signal.h>
#include <sys/resource.h>

#include "crowd.h"

#define LINGER_US 100000 // a duplicate update arrives right after the last expected one
#define STALLED_QUIET_US 3000000

static volatile sig_atomic_t stopped, dropped;
static uint64_t drops;

static uint64_t cpu_us(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000 +
         (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static void on_signal(int number) {
  if (number == SIGUSR1)
    dropped = 1;
  else if (number == SIGUSR2)
    in_window = !in_window;
  else
    stopped = 1;
}

static void say_ready(void) {
  FILE *file = ask.ready ? fopen(ask.ready, "w") : NULL;
  if (file)
    fclose(file);
}

// Runs until each connection is open or refused. Returns how long the connections took to open, in microseconds.
static uint64_t open_all(void) {
  uint64_t began = now_us();
  while (!stopped && (ring_count || opening))
    turn(100);
  uint64_t took = now_us() - began;
  say_ready();
  return took;
}

static uint64_t drop_and_return(void) {
  uint64_t began = now_us();
  dropped = 0;
  for (unsigned i = 0; i < ask.clients; i++)
    if (all[i].state == OPEN) {
      close(all[i].fd);
      all[i].state = IDLE;
      enqueue(i);
    }
  open_all();
  drops++;
  return now_us() - began;
}

// Returns how long the clients took to connect again, or 0 if no client was dropped. If they were dropped several times,
// this is the mean.
static uint64_t read_on(unsigned readers) {
  uint64_t ready_us = now_us(), done_us = 0, back_us = 0;
  while (!stopped && (ask.hold || ask.frames || ask.caught_up)) {
    turn(20);
    if (dropped && ask.reconnect)
      back_us += drop_and_return();
    if (ask.hold)
      continue;
    uint64_t now = now_us(), heard_us = last_us > ready_us ? last_us : ready_us;
    if (!done_us && (complete >= readers || cut >= readers))
      done_us = now;
    if ((done_us && now - done_us > LINGER_US) || now > heard_us + ask.quiet_us)
      break;
  }
  return drops ? back_us / drops : 0;
}

static void read_stalled(void) {
  for (unsigned i = ask.clients; i < ask.clients + ask.stalled; i++)
    if (all[i].state == OPEN)
      watch(&all[i], EPOLL_CTL_ADD, EPOLLIN);
  stalled_us = now_us();
  while (!stopped && now_us() < stalled_us + STALLED_QUIET_US)
    turn(100);
}

static void print_ends(const char *name, unsigned first, unsigned count) {
  static unsigned codes[65536];
  unsigned reset = 0, eof = 0, connected = 0;
  memset(codes, 0, sizeof codes);
  for (struct client *client = all + first; client < all + first + count; client++) {
    connected += client->state == OPEN;
    if (client->code)
      codes[client->code]++;
    else if (client->state == ENDED)
      client->error ? reset++ : eof++;
  }
  printf(",\"%s\":{\"connected\":%u,\"reset\":%u,\"eof\":%u,\"codes\":{", name, connected, reset, eof);
  const char *comma = "";
  for (unsigned code = 1; code < 65536; code++)
    if (codes[code]) {
      printf("%s\"%u\":%u", comma, code, codes[code]);
      comma = ",";
    }
  printf("}}");
}

static void print_updates(uint64_t cpu) {
  uint64_t lost = 0, extra = 0;
  for (unsigned i = 0; i < ask.clients && ask.frames; i++) {
    lost += all[i].updates < ask.frames ? ask.frames - all[i].updates : 0;
    extra += all[i].updates > ask.frames ? all[i].updates - ask.frames : 0;
  }
  printf(",\"frames\":%lu,\"lost\":%lu,\"extra\":%lu,\"doubled\":%lu,\"disorder\":%lu,\"cut\":%u,\"pings\":%lu",
         frames_total, lost, extra, doubled, disorder, cut, pings);
  printf(",\"span_s\":%.6f,\"cpu_us\":%lu", (double)(last_us - first_us) / 1e6, cpu);
  printf(",\"p50_us\":%lu,\"p90_us\":%lu,\"p99_us\":%lu,\"p999_us\":%lu,\"max_us\":%lu", latency_quantile(&latency, .5),
         latency_quantile(&latency, .9), latency_quantile(&latency, .99), latency_quantile(&latency, .999),
         latency.largest);
  printf(",\"window_frames\":%lu,\"window_p99_us\":%lu", window.count, latency_quantile(&window, .99));
}

static void parse(int count, char **words) {
  if (count < 3)
    exit(2);
  ask.port = atoi(words[1]);
  ask.clients = (unsigned)atoi(words[2]);
  for (int i = 3; i < count; i++) {
    const char *value = i + 1 < count ? words[i + 1] : "";
    if (!strcmp(words[i], "--hold")) {
      ask.hold = 1;
      continue;
    }
    if (!strcmp(words[i], "--caught-up")) {
      ask.caught_up = 1;
      continue;
    }
    if (!strcmp(words[i], "--distinct")) {
      ask.distinct = 1;
      continue;
    }
    if (!strcmp(words[i], "--sse")) {
      ask.sse = 1;
      continue;
    }
    if (!strcmp(words[i], "--reset")) {
      ask.reset = 1;
      continue;
    }
    if (!strcmp(words[i], "--reconnect")) {
      ask.hold = ask.reconnect = 1;
      continue;
    }
    i++;
    if (!strcmp(words[i - 1], "--inflight"))
      ask.inflight = (unsigned)atoi(value);
    else if (!strcmp(words[i - 1], "--frames"))
      ask.frames = strtoull(value, NULL, 10);
    else if (!strcmp(words[i - 1], "--quiet-s"))
      ask.quiet_us = strtoull(value, NULL, 10) * 1000000;
    else if (!strcmp(words[i - 1], "--stalled"))
      ask.stalled = (unsigned)atoi(value);
    else if (!strcmp(words[i - 1], "--paths"))
      ask.paths = value;
    else if (!strcmp(words[i - 1], "--ready"))
      ask.ready = value;
    else
      exit(2);
  }
}

static void read_paths(void) {
  static char line[PATH_LIMIT];
  FILE *file = fopen(ask.paths, "r");
  if (!file)
    fail(ask.paths);
  while (fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = 0;
    paths = realloc(paths, (paths_count + 1) * sizeof *paths);
    if (!paths || !(paths[paths_count++] = strdup(line)))
      fail("paths");
  }
  fclose(file);
}

static void prepare(void) {
  if (ask.paths)
    read_paths();
  ring = ask.clients + ask.stalled;
  all = calloc(ring, sizeof *all);
  waiting = calloc(ring, sizeof *waiting);
  ask.epoll = epoll_create1(0);
  if (!all || !waiting || ask.epoll < 0)
    fail("prepare");
  for (unsigned i = 0; i < ring; i++) {
    all[i].stalled = i >= ask.clients;
    enqueue(i);
  }
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGUSR1, &action, NULL);
  sigaction(SIGUSR2, &action, NULL);
}

int main(int count, char **words) {
  parse(count, words);
  prepare();
  uint64_t began_us = now_us();
  uint64_t open_us = open_all(), cpu_before = cpu_us();
  unsigned opened = ask.clients > refused ? ask.clients - refused : 0, refused_first = refused;
  uint64_t back_us = read_on(opened), cpu = cpu_us() - cpu_before;
  if (ask.stalled)
    read_stalled();
  printf("{\"refused\":%u,\"open_s\":%.6f,\"refused_back\":%u,\"back_s\":%.6f", refused_first, (double)open_us / 1e6,
         refused - refused_first, (double)back_us / 1e6);
  printf(",\"resumes\":%lu,\"incomplete\":%lu,\"caught_s\":%.6f", resumes, incomplete,
         complete_us ? (double)(complete_us - began_us) / 1e6 : 0.0);
  print_updates(cpu);
  print_ends("readers", 0, ask.clients);
  print_ends("stalled", ask.clients, ask.stalled);
  printf("}\n");
  fflush(stdout);
  // The clients stay connected until SIGTERM, so that the measurement ends before they disconnect.
  while (!stopped)
    turn(100);
  return 0;
}
