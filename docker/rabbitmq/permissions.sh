#!/bin/sh
# Grants the user of BRIDGE_AMQP_URL the least permissions at RabbitMQ:
#
#   docker/rabbitmq/permissions.sh ROW USER
#
# Run it on the broker's host, for a user that only the bridge has (`rabbitmqctl add_user USER`): it replaces all earlier
# permissions of the user. If the broker runs in a container, put RABBITMQCTL='docker exec rabbitmq rabbitmqctl' before
# the command. The rows:
#
#   read-queue     BRIDGE_QUEUE, a queue that an operator has declared and bound: only read on it. From RabbitMQ 4.3 on,
#                  the bridge then can't check whether the exchange exists or was declared again, and warns in /readyz.
#                  With read on the exchange too, it can. The same is true for read-stream.
#   own-queue      BRIDGE_QUEUE, a queue that the bridge declares and binds.
#   exclusive      The default: the bridge declares a queue for each connection.
#   read-stream    BRIDGE_HISTORY=stream, with a stream that an operator has declared and bound.
#   own-stream     BRIDGE_HISTORY=stream, with a stream that the bridge declares and binds.
#
# In all rows, the exchange exists already: a bridge that declares it also needs configure on it. Rejected events are only
# counted: BRIDGE_REJECT_EXCHANGE=off. REJECTS=bridge.rejected before the command also grants the permissions to declare
# this exchange and its queue, and to publish to it.
#
# EXCHANGE, QUEUE, STREAM and VHOST before the command set other names than those below. Permissions are regular
# expressions, one each for configure, write and read. A permission on a name is for the exchange and the queue of that
# name.
set -eu

EXCHANGE=${EXCHANGE:-killmails}
QUEUE=${QUEUE:-killmails.bridge}
STREAM=${STREAM:-bridge.history}
REJECTS=${REJECTS:-}
VHOST=${VHOST:-/}

if [ $# -ne 2 ]; then
  sed -n '2,$ { /^#/!q; s/^# \{0,1\}//p; }' "$0" >&2
  exit 2
fi

# Escapes the name: a dot in it must match only a dot.
one() { printf '%s' "$1" | sed 's/[][\.*^$+?(){}|]/\\&/g'; }
exchange=$(one "$EXCHANGE") queue=$(one "$QUEUE") stream=$(one "$STREAM")

case $1 in
  read-queue) configure='' write='' read=$queue ;;
  # Binding needs write on the queue and read on the exchange.
  own-queue) configure=$queue write=$queue read="$queue|$exchange" ;;
  # The broker generates a name that begins with amq.gen-.
  exclusive) configure='amq\.gen-.*' write='amq\.gen-.*' read="amq\\.gen-.*|$exchange" ;;
  # The bridge publishes to amq.default to find the stream's end.
  read-stream) configure='' write='amq\.default' read=$stream ;;
  own-stream) configure=$stream write="$stream|amq\\.default" read="$stream|$exchange" ;;
  *) echo "$0: there is no row '$1': read-queue, own-queue, exclusive, read-stream or own-stream" >&2; exit 2 ;;
esac

if [ -n "$REJECTS" ]; then
  rejects=$(one "$REJECTS")
  configure=${configure:+$configure|}$rejects write=${write:+$write|}$rejects read=$read\|$rejects
fi

# ^$ grants nothing. An empty text would do the same, but less clearly.
anchored() { if [ -n "$1" ]; then printf '^(%s)$' "$1"; else printf '^$'; fi; }

# RABBITMQCTL is not quoted, because it may contain several words.
exec ${RABBITMQCTL:-rabbitmqctl} set_permissions -p "$VHOST" "$2" \
  "$(anchored "$configure")" "$(anchored "$write")" "$(anchored "$read")"
