// `floor PORT`: a server that does only the work that every fan-out needs. Each connection to 127.0.0.1:PORT counts as
// a WebSocket client. The program sends each line of standard input to all clients as one text frame, with one send()
// per client.
//
// The program does not check handshakes: the load generator always sends the sample key of RFC 6455, section 1.3, so
// the answer is constant.

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_CLIENTS 65536
#define LONGEST_LINE 65535 // the maximum of a frame's 16-bit length

static const char ACCEPTED[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                               "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static int clients[MOST_CLIENTS], count;

static int listen_at(int port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) {
    perror("listen");
    exit(1);
  }
  return fd;
}

static void take_client(int listener) {
  char request[4096];
  size_t got = 0;
  int fd = accept(listener, NULL, NULL), one = 1;
  if (fd < 0)
    return;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  while (got < 4 || memcmp(request + got - 4, "\r\n\r\n", 4)) {
    ssize_t more = recv(fd, request + got, sizeof request - got, 0);
    if (more <= 0) {
      close(fd);
      return;
    }
    got += (size_t)more;
  }
  if (count < MOST_CLIENTS && send(fd, ACCEPTED, sizeof ACCEPTED - 1, MSG_NOSIGNAL) > 0)
    clients[count++] = fd;
  else
    close(fd);
}

static void broadcast(const char *text, size_t size) {
  static char frame[4 + LONGEST_LINE];
  size_t head = size < 126 ? 2 : 4;
  frame[0] = (char)0x81;
  frame[1] = size < 126 ? (char)size : 126;
  if (head == 4) {
    frame[2] = (char)(size >> 8);
    frame[3] = (char)size;
  }
  memcpy(frame + head, text, size);
  for (int i = 0; i < count; i++) {
    while (send(clients[i], frame, head + size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
      if (errno == EAGAIN) {
        struct pollfd writable = {clients[i], POLLOUT, 0};
        poll(&writable, 1, 1000);
        continue;
      }
      close(clients[i]);
      clients[i--] = clients[--count];
      break;
    }
  }
}

// Returns 0 at the end of standard input.
static int take_lines(void) {
  static char input[1 << 20];
  static size_t have;
  ssize_t got = read(STDIN_FILENO, input + have, sizeof input - have);
  if (got <= 0)
    return 0;
  have += (size_t)got;
  char *line = input, *end;
  while ((end = memchr(line, '\n', (size_t)(input + have - line)))) {
    broadcast(line, (size_t)(end - line));
    line = end + 1;
  }
  have -= (size_t)(line - input);
  memmove(input, line, have);
  return 1;
}

int main(int words, char **word) {
  if (words != 2)
    return 2;
  struct pollfd sources[] = {{listen_at(atoi(word[1])), POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
  for (;;) {
    poll(sources, 2, -1);
    if (sources[0].revents & POLLIN)
      take_client(sources[0].fd);
    if (sources[1].revents && !take_lines())
      return 0;
  }
}
